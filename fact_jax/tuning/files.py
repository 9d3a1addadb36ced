"""Factor files: a task's factors and head as safetensors, with what is needed to use them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fact_jax.errors import UserError
from fact_jax.tuning.method import Method


class TrainedTask(NamedTuple):
    """What a factor file holds; ``method.adaptation(factors, config)`` uses the trained scale."""

    method: Method
    factors: dict[str, jax.Array]
    head: dict[str, jax.Array]  # kernel [d, classes], bias [classes]
    metadata: dict[str, Any]


def to_bytes(method: Method, trainable: dict, metadata: dict[str, Any]) -> bytes:
    """safetensors of {"factors": ..., "head": ...}, names joined by '/'; metadata as JSON."""
    from safetensors.numpy import save

    from fact_jax.tuning import METHODS

    name = next(name for name, kind in METHODS.items() if isinstance(method, kind))
    metadata = {"method": name, "method_settings": dataclasses.asdict(method), **metadata}
    tensors = {
        "/".join(str(k.key) for k in keys): np.ascontiguousarray(value)
        for keys, value in jax.tree_util.tree_leaves_with_path(trainable)
    }
    return save(tensors, metadata={k: json.dumps(v) for k, v in metadata.items()})


def load_factors(path: str) -> TrainedTask:
    """Reads a factor file of ours. Raises UserError if it is missing or something else."""
    from safetensors import SafetensorError, safe_open

    from fact_jax.tuning import METHODS

    if not epath.Path(path).exists():
        raise UserError(f"Factor file {path} does not exist.")
    tree: dict[str, dict[str, jax.Array]] = {"factors": {}, "head": {}}
    try:
        with safe_open(path, "numpy") as f:
            metadata = {k: json.loads(v) for k, v in (f.metadata() or {}).items()}
            for name in f.keys():  # noqa: SIM118
                group, _, leaf = name.partition("/")
                tree[group][leaf] = jnp.asarray(f.get_tensor(name))
        method = METHODS[metadata["method"]](**metadata["method_settings"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a factor file of fact-jax ({type(error).__name__}: {error}). Give one "
            "from a work directory's factors/ folder."
        ) from error
    return TrainedTask(method, tree["factors"], tree["head"], metadata)
