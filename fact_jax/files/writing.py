"""Safetensors files as bytes: equal tensors and metadata make equal bytes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

COMPACT = (",", ":")  # separators of JSON without spaces


def file_bytes(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    separators: tuple[str, str] | None = None,
) -> bytes:
    """The file of these tensors, whose metadata are JSON texts by their keys."""
    texts = {k: json.dumps(v, separators=separators) for k, v in metadata.items()}
    content = save(dict(tensors), metadata=texts)
    # safetensors writes its header in any order; sorted, equal numbers make equal files.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(
        json.loads(content[8:end]), sort_keys=True, ensure_ascii=False, separators=separators
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]
