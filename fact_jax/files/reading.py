"""Turns a file's tensors into our parameters; checks each shape before its data are read."""

import math
import re
import warnings
from collections.abc import Iterable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import VARIANTS, ViTConfig
from fact_jax.backbone.parameters import shapes
from fact_jax.backbone.positions import ROPE_BASE
from fact_jax.errors import UserError
from fact_jax.files.foreign import foreign
from fact_jax.files.guards import MAX_CONFIG_BYTES
from fact_jax.files.json_reader import read_json
from fact_jax.files.kinds import RELATIVE, TABLE, kind_by
from fact_jax.files.layouts import Layout
from fact_jax.files.tensors import TensorFile
from fact_jax.ranges import SIZE


class _VisionConfig(TypedDict, total=False):
    """The entries of a checkpoint's config.json that a ViT depends on."""

    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    rope_theta: float


class _ModelConfig(_VisionConfig, total=False):
    """A config.json; that of CLIP or SigLIP has the ViT's entries apart."""

    vision_config: _VisionConfig


_GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
_GELU |= {"quick_gelu": "quick", "silu": "silu", "swish": "silu"}
_QKV_BIAS = re.compile(r"encoderblock/.*/(query|key|value)/bias$")


class Reader:
    """Turns a file's tensors into our parameters, checking each shape before it is read."""

    def __init__(self, file: TensorFile, layout: Layout, prefix: str, config: ViTConfig):
        self.file, self.layout, self.prefix, self.config = file, layout, prefix, config
        self.used: set[str] = set()
        self.without_qkv_biases = not foreign(file.shapes) and self.lacks_qkv_biases()

    def shape(self, name: str) -> tuple[int, ...]:
        if self.prefix + name not in self.file.shapes:
            if what := foreign(self.file.shapes):
                raise UserError(f"Weights file {self.file.path} is {what}")
            raise UserError(
                f"Weights file {self.file.path}, read as {self.layout.title}, holds no tensor "
                f"{self.prefix + name!r}. Use a complete file."
            )
        return self.file.shapes[self.prefix + name]

    def lacks_qkv_biases(self) -> bool:
        """Whether no block has biases of query, key and value, as with timm's qkv_bias=False."""
        biases = [name for name in self.layout.names if _QKV_BIAS.search(name)]
        depth = range(self.config.depth)
        return not any(
            self.prefix + self.layout.tensor(bias, layer)[0] in self.file.shapes
            for bias in biases
            for layer in depth
        )

    def _distilled(self) -> bool:
        return self.prefix + (self.layout.distillation or "?") in self.file.shapes

    def image_size(self) -> int:
        """Side of the images, in pixels, that the file's position table was made for."""
        if self.config.positions == "rope":
            return self.config.image_size
        if self.config.positions == "relative":
            return self._relative_size()
        table = self.layout.tensor(TABLE)[0]
        rows = (0, 0, *self.shape(table))[-2] - self._rows_of_others()
        grid = math.isqrt(max(rows, 0))
        if grid * grid != rows or not SIZE.allows(grid * self.config.patch_size):
            first = "a row for the class token and one" if self.config.class_token else "a row"
            raise UserError(
                f"Weights file {self.file.path}: the position table {table!r} is "
                f"[{_text(self.shape(table))}]; expected {first} for each patch of a square image."
            )
        return grid * self.config.patch_size

    def _relative_size(self) -> int:
        """Side of the images that the file's relative positions were made for."""
        table = self.layout.tensor(RELATIVE, 0)[0]
        rows = (0, 0, *self.shape(table))[-2] - 3
        side = math.isqrt(max(rows, 0))
        grid = (side + 1) // 2
        if (2 * grid - 1) ** 2 != rows or not SIZE.allows(grid * self.config.patch_size):
            raise UserError(
                f"Weights file {self.file.path}: the relative positions {table!r} are "
                f"[{_text(self.shape(table))}]; expected a row for each distance of two patches of "
                "a square image, and three for the class token."
            )
        return grid * self.config.patch_size

    def _rows_of_others(self) -> int:
        """Rows of the file's position table for tokens that are no patches."""
        table = self.layout.tensor(TABLE)[0]
        rows = (0, 0, *self.shape(table))[-2]
        # timm's files of ViTs with registers have added the class token's row to the token.
        if self.config.registers and math.isqrt(max(rows, 0)) ** 2 == rows:
            return 0
        return self.config.class_token + self._distilled()

    def check_variant(self) -> None:
        """Says which variant a file holds, if it is not the one wanted."""
        c, layout = self.config, self.layout
        shape = self.shape(layout.patch)
        if len(shape) != 4:
            raise UserError(
                f"Weights file {self.file.path}: {layout.patch!r} is [{_text(shape)}]; expected "
                "four axes. (SigLIP 2's NaFlex files have two: take a file of one image size.)"
            )
        width, patch = (shape[0], shape[2]) if layout.torch else (shape[3], shape[0])
        depth = 0
        while self._has("Transformer/encoderblock/LayerNorm_0/scale", depth):
            depth += 1
        stored = (patch, width, depth, kind_by(self._has))
        if stored == _shape_and_kind(c):
            return
        fits = [name for name, v in VARIANTS.items() if _shape_and_kind(v) == stored]
        if not fits and (what := foreign(self.file.shapes)):
            raise UserError(f"Weights file {self.file.path} is {what}")
        raise UserError(
            f"Weights file {self.file.path} holds a ViT of {_described(*stored)}"
            f"{f' ({fits[0]})' if fits else ''}; expected {_described(*_shape_and_kind(c))}. Set "
            "the variant that fits the file."
        )

    def _has(self, parameter: str, layer: int = 0) -> bool:
        if parameter not in self.layout.names:
            return False
        return self.prefix + self.layout.tensor(parameter, layer)[0] in self.file.shapes

    def leaf(self, keys: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        """Our parameter at this place of the tree, as float32."""
        parameter = "/".join(str(k.key) for k in keys)
        if "encoderblock" not in parameter:
            return jnp.asarray(self._read(parameter, None, struct.shape))
        out = np.empty(struct.shape, np.float32)
        for layer in range(self.config.depth):
            out[layer] = self._read(parameter, layer, struct.shape[1:])
        return jnp.asarray(out)

    def _read(self, parameter: str, layer: int | None, shape: tuple[int, ...]) -> np.ndarray:
        name, part = self.layout.tensor(parameter, layer)
        if self._is_zero(parameter) and self.prefix + name not in self.file.shapes:
            return np.zeros(shape, np.float32)
        stored = self.shape(name)
        accepted = [self._stored_shape(parameter, shape, part[1])]
        if not self.layout.torch:  # heads apart, as published, or together
            accepted.insert(0, split_heads(parameter, shape, self.config))
        elif len(shape) > 1 and shape[0] == 1:  # tokens and tables
            accepted += [accepted[0][1:], accepted[0][2:]]
        if stored not in accepted:
            raise UserError(
                f"Weights file {self.file.path}: tensor {self.prefix + name!r} is "
                f"[{_text(stored)}]; expected [{_text(accepted[0])}]. Set the variant that fits "
                "the file, or use a complete file."
            )
        self.used.add(self.prefix + name)
        tensor = self.file.read(self.prefix + name)
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype.itemsize < 2:
            raise UserError(
                f"Weights file {self.file.path}: tensor {self.prefix + name!r} is of type "
                f"{tensor.dtype}; expected floating-point numbers."
            )
        if part[1] > 1:
            tensor = np.split(tensor, part[1])[part[0]]
        if parameter.endswith("pos_embedding") and self._distilled():
            warnings.warn(
                f"{self.file.path}: the distillation token and its position are dropped; features "
                "are those of the class token.",
                stacklevel=2,
            )
            self.used.add(self.prefix + self.layout.distillation)
            tensor = np.delete(tensor, 1, axis=1)
        if parameter.endswith("pos_embedding") and self.config.class_token > self._rows_of_others():
            tensor = np.pad(tensor, ((0, 0), (1, 0), (0, 0)))
        if self.layout.torch and parameter.endswith("kernel"):
            tensor = tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else (1, 0))
        with np.errstate(over="ignore"):
            tensor = tensor.astype(np.float32)
        if not np.isfinite(tensor).all():
            raise UserError(
                f"Weights file {self.file.path}: tensor {self.prefix + name!r} has numbers that "
                "are not finite in float32. Use a sound checkpoint."
            )
        return tensor.reshape(shape)

    def _is_zero(self, parameter: str) -> bool:
        """Whether a file may lack this bias, which is zero then."""
        if _QKV_BIAS.search(parameter):
            without_keys = not self.config.key_bias and parameter.endswith("key/bias")
            return self.without_qkv_biases or without_keys
        return parameter == "embedding/bias" and not self.config.patch_bias

    def _stored_shape(self, parameter: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
        """The shape in which the file's layout stores a parameter that we store as `shape`."""
        if parameter.endswith("pos_embedding"):
            rows = shape[1] - self.config.class_token + self._rows_of_others()
            return (1, rows, shape[2])
        if not self.layout.torch:
            return shape
        if parameter.endswith("kernel"):
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        return (parts * shape[0], *shape[1:])


def _shape_and_kind(config: ViTConfig) -> tuple[int, int, int, tuple[str, ...]]:
    return config.patch_size, config.width, config.depth, kind_by(lambda p: p in shapes(config))


def _described(patch: int, width: int, depth: int, kind: tuple[str, ...]) -> str:
    more = f" with {', '.join(kind)}" if kind else " of the plain kind"
    return f"patch size {patch}, width {width} and {depth} blocks{more}"


def split_heads(parameter: str, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
    """The shape in which Google's files store a block's parameter that we store as `shape`."""
    heads = (config.num_heads, config.width // config.num_heads)
    if "MultiHeadDotProductAttention_1" not in parameter or parameter.endswith("out/bias"):
        return shape
    return (*heads, config.width) if "/out/" in parameter else (*shape[:-1], *heads)


def published_settings(file: TensorFile, layout: Layout, config: ViTConfig) -> dict[str, Any]:
    """Settings of the forward pass by the file's kind and a config.json beside it."""
    path = file.path.parent / "config.json"
    usual = layout.layer_norm_eps or config.layer_norm_eps
    settings: dict[str, Any] = {"layer_norm_eps": usual}
    if not (layout.title.startswith("Hugging Face") and path.is_file()):
        return settings
    try:
        stated = read_json(path, schema=_ModelConfig, max_bytes=MAX_CONFIG_BYTES, allow_nan=True)
    except (UserError, OSError) as error:
        raise UserError(f"{path} is not the config of a checkpoint ({error}).") from error
    stated = {**stated, **stated.get("vision_config", {})}
    heads = stated.get("num_attention_heads", config.num_heads)
    eps, theta = stated.get("layer_norm_eps", usual), stated.get("rope_theta", ROPE_BASE)
    if not 0 < eps < 1:
        raise UserError(f"{path} says that layer_norm_eps is {eps!r}; expected a small number.")
    if heads != config.num_heads:
        raise UserError(
            f"{path} says {heads!r} attention heads; the variant has {config.num_heads}. Set the "
            "variant that fits the file."
        )
    if theta != ROPE_BASE:
        raise UserError(f"{path} says that rope_theta is {theta!r}; known here: {ROPE_BASE}.")
    settings["layer_norm_eps"] = eps
    if (act := stated.get("hidden_act")) is None:
        return settings
    if act not in _GELU:
        raise UserError(
            f"{path} says that the MLP's function is {act!r}; known here: {', '.join(_GELU)}."
        )
    return {**settings, "gelu": _GELU[act]}


def _text(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))
