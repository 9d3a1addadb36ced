"""Published ViT weights: reading them from every common file, and writing them.

Google's `.npz` (both generations), Hugging Face's and timm's safetensors, and PyTorch's own files
are read through one function, `load_vit`; the names are data in `layouts.py`. Classification heads,
poolers, decoders and the old files' `pre_logits` layer are dropped, as in FacT's code.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fact_jax.backbone.config import ViTConfig, get_variant
from fact_jax.backbone.vit import ViT, init_base
from fact_jax.errors import UserError
from fact_jax.files.download import find_weights
from fact_jax.files.foreign import choose_teacher, foreign, unchunked
from fact_jax.files.layouts import LAYOUTS, find_layouts, unknown_tensors
from fact_jax.files.reading import Reader, published_settings, split_heads
from fact_jax.files.tensors import TensorFile, open_tensors

# Settings that the tensors of a file decide.
_STORED = (
    *("width", "depth", "mlp_dim", "patch_size", "image_size", "layer_scale", "registers"),
    *("class_token", "positions", "pre_norm", "mlp"),
)


def load_vit(
    variant: str, path: str | os.PathLike[str] | None = None, **changes: Any
) -> tuple[ViT, dict[str, Any]]:
    """Loads a ViT and its frozen weights.

    The position table keeps the file's size, and ``model.config.image_size`` with it. A config.json
    beside the file gives LayerNorm's epsilon and the kind of GELU. DeiT's distillation token is
    dropped with a warning.

    Args:
      variant: a name in `VARIANTS`, such as "vit_b16".
      path: a `.npz`, safetensors or PyTorch file, a folder or index of a Hugging Face checkpoint,
        or ``hf:owner/name`` for a repository of the hub. None: the variant's published (or bundled)
        weights, downloaded once.
      **changes: other values for fields of the config, such as ``dtype="bfloat16"``.

    Returns:
      The model, and its parameters `base`: a tree of float32 arrays, the blocks stacked.

    Raises:
      UserError: the file is missing, damaged, or of another variant or architecture; or a change is
        one that no ViT has or that the file's tensors do not allow.
    """
    config = get_variant(variant)
    with contextlib.closing(open_tensors(find_weights(variant, path))) as file:
        return _load(file, config, changes)


def _load(
    file: TensorFile, config: ViTConfig, changes: dict[str, Any]
) -> tuple[ViT, dict[str, Any]]:
    file = unchunked(file)
    vits = choose_teacher(find_layouts(file.shapes), file.path)
    if not vits:
        if what := foreign(file.shapes):
            raise UserError(f"Weights file {file.path} is {what}")
        first = ", ".join(sorted(file.shapes)[:3]) or "nothing"
        raise UserError(
            f"Weights file {file.path} is not a ViT in a layout known here "
            f"({', '.join(layout.title for layout in LAYOUTS)}): it holds {first} ..."
        )
    if len(vits) > 1:
        raise UserError(
            f"Weights file {file.path} holds several ViTs, under "
            f"{', '.join(repr(prefix) for _, prefix in vits)}. Save the one that you want in a "
            "file of its own."
        )
    ((layout, prefix),) = vits
    reader = Reader(file, layout, prefix, config)
    reader.check_variant()
    config = config.replace(image_size=reader.image_size())
    changed = config.replace(**{**published_settings(file, layout, config), **changes})
    # The attention pooling has parameters; the class token and the mean have none.
    pooling = ("pooling",) if "attention" in (config.pooling, changed.pooling) else ()
    for name in (*_STORED, *pooling):
        if name == "image_size" and config.positions == "rope":
            continue
        if (value := getattr(changed, name)) != (stored := getattr(config, name)):
            other = " Images may be of other sizes all the same." * (name == "image_size")
            raise UserError(
                f"{name}={value} does not fit the weights {file.path}, which have {stored}. Leave "
                f"it out.{other}"
            )
    config = changed
    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    base = jax.tree_util.tree_map_with_path(reader.leaf, structs)
    if unknown := unknown_tensors(layout, prefix, file.shapes, reader.used):
        text = ", ".join(unknown[:4]) + (" ..." if len(unknown) > 4 else "")
        raise UserError(
            f"Weights file {file.path} holds tensors that a plain ViT does not have ({text}): "
            "another architecture, whose features would come out wrong. "
            + (f"It is {what}" if (what := foreign(unknown)) else "Use a plain ViT's file.")
        )
    return ViT(config), base


def checksum(base: dict[str, Any]) -> str:
    """SHA-256 of the parameters, in hexadecimal: the same for every file of the same numbers."""
    digest = hashlib.sha256()
    for keys, value in jax.tree_util.tree_leaves_with_path(base):
        digest.update(f"{jax.tree_util.keystr(keys)} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value, np.float32).data)
    return digest.hexdigest()


def write_npz(
    path: str | os.PathLike[str], config: ViTConfig, base: dict[str, Any], dtype: Any = np.float32
) -> None:
    """Writes `base` in the Google `.npz` layout, one array per block, compressed.

    A base without a head gets one of one class, all zeros: timm 0.4.12, which FacT's code uses,
    reads ``head/bias`` of every file, and takes the head only if it has the model's classes.
    timm's and FacT's code load such a file (``checkpoint_path=``); they take LayerNorm's epsilon
    for 1e-6, and do not know the arrays of LayerScale, which only we read.
    """
    arrays: dict[str, Any] = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(base):
        name = "/".join(str(k.key) for k in keys)
        value = np.asarray(value, dtype)
        if "encoderblock" not in name:
            arrays[name] = value
            continue
        for i, array in enumerate(value):
            stored = array.reshape(split_heads(name, array.shape, config))
            arrays[name.replace("encoderblock", f"encoderblock_{i}")] = stored
    arrays.setdefault("head/kernel", np.zeros((config.width, 1), dtype))
    arrays.setdefault("head/bias", np.zeros(1, dtype))
    np.savez_compressed(Path(path), **arrays)
