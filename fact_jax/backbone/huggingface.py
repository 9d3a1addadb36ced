"""Weights in the naming of Hugging Face's safetensors files (for a start: DINOv2)."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT, init_base
from fact_jax.errors import UserError

# Our module -> the file's module, within a block and outside; kernels are stored transposed there.
_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MultiHeadDotProductAttention_1/query": "attention.attention.query",
    "MultiHeadDotProductAttention_1/key": "attention.attention.key",
    "MultiHeadDotProductAttention_1/value": "attention.attention.value",
    "MultiHeadDotProductAttention_1/out": "attention.output.dense",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _dinov2_name(ours: str) -> str:
    if ours.startswith("Transformer/encoderblock/"):
        module, _, leaf = ours.removeprefix("Transformer/encoderblock/").rpartition("/")
        if leaf.startswith("LayerScale_"):
            return f"encoder.layer.{{}}.layer_scale{int(leaf[-1]) + 1}.lambda1"
        return f"encoder.layer.{{}}.{_BLOCK[module]}.{_LEAF[leaf]}"
    return {
        "cls": "embeddings.cls_token",
        "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
        "embedding/kernel": "embeddings.patch_embeddings.projection.weight",
        "embedding/bias": "embeddings.patch_embeddings.projection.bias",
        "Transformer/encoder_norm/scale": "layernorm.weight",
        "Transformer/encoder_norm/bias": "layernorm.bias",
    }[ours]


def read_dinov2(path: str | os.PathLike, config: ViTConfig) -> tuple[ViT, dict]:
    """Reads transformers' `Dinov2Model` weights; float32 base in the stacked layout.

    The position table keeps the file's size and is interpolated to the images in the forward pass.
    Raises UserError naming a tensor that is missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"Weights file {path} cannot be read as safetensors ({error}). Download it again, or "
            "name another file."
        ) from error
    table = tensors.get("embeddings.position_embeddings")
    if table is None:
        raise UserError(f"Weights file {path} is not a Dinov2Model: no position embeddings in it.")
    config = config.replace(image_size=round((table.shape[1] - 1) ** 0.5) * config.patch_size)

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"Weights file {path} holds no tensor {name!r}.")
        tensor = np.asarray(tensors[name], np.float32)
        if tensor.ndim == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        if tensor.shape != shape:
            raise UserError(
                f"Weights file {path}: tensor {name!r} has, in our order, the shape "
                f"{tensor.shape}; expected {shape}. Set the variant that fits the file."
            )
        return tensor

    def leaf(keys, struct):
        name = _dinov2_name("/".join(str(k.key) for k in keys))
        if "{}" not in name:
            return jnp.asarray(read(name, struct.shape))
        layers = [read(name.format(i), struct.shape[1:]) for i in range(config.depth)]
        return jnp.asarray(np.stack(layers))

    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    return ViT(config), jax.tree_util.tree_map_with_path(leaf, structs)
