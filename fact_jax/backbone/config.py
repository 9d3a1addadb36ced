"""The shape of a Vision Transformer, and the named variants."""

from __future__ import annotations

import dataclasses
from typing import Any

from fact_jax.errors import UserError
from fact_jax.ranges import SIZE, Flag, OneOf, Real, Whole, check_fields, setting

PRECISIONS = ("default", "high", "highest")
REMATS = ("none", "attention", "block")
ATTENTIONS = ("xla", "cudnn")
GELUS = ("exact", "tanh", "quick", "silu")


_NEVER = object()


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and numerics of a ViT (Dosovitskiy et al., 2021).

    Attributes:
      width: numbers of a token, d.
      depth: number of blocks.
      num_heads: attention heads; they divide `width`.
      mlp_dim: width of the MLP's hidden layer.
      patch_size: side of a patch in pixels.
      image_size: side of an image in pixels, a multiple of `patch_size`.
      gelu: the MLPs' function: 'exact' (erf, as in timm and so in FacT), 'tanh' (the original JAX
        code), 'quick' (CLIP's ``x sigmoid(1.702 x)``) or 'silu'.
      layer_norm_eps: epsilon of every LayerNorm.
      layer_scale: whether the branches have DINOv2's per-channel gains.
      patch_bias, key_bias: whether the published model has these biases. Where it has none, ours
        are zero.
      registers: further learned tokens, which nothing reads at the end (Darcet et al., 2024).
      class_token: whether there is a class token.
      positions: 'table', a learned row for each patch; 'rope', DINOv3's rotation of queries and
        keys; or 'relative', BEiT's learned biases of scores in each block.
      table_resize: how the table is brought to other image sizes: 'bicubic', or 'antialias'.
      pre_norm: whether a LayerNorm stands before the first block, as in CLIP.
      mlp: 'plain', or 'gated' (``fc2(act(gate(y)) fc1(y))``, SwiGLU if `gelu` is 'silu').
      pooling: the features: 'class', the class token after the last norm; 'mean', the norm of the
        patches' mean; or 'attention', a learned query's attention to all patches, as in SigLIP.
      dtype: the compute type; parameters, LayerNorm, softmax and the adaptation stay float32.
      precision: of float32 products: 'default' (the device's; one bfloat16 pass on a TPU), 'high'
        (three passes, or TensorFloat-32) or 'highest' (true float32); see docs/numerics.md.
      remat: what the backward pass computes again to save memory: 'none', 'attention' (scores and
        probabilities) or 'block' (all of a block).
      attention: 'xla', or 'cudnn', the fused kernel of NVIDIA GPUs, in bfloat16 only.
      unroll: whether the scan over the blocks is written out, for measurements.
    """

    width: int = setting(dataclasses.MISSING, SIZE)
    # What a method does for each block takes time before a hostile file's shapes are compared.
    depth: int = setting(dataclasses.MISSING, Whole(1, 200))
    num_heads: int = setting(dataclasses.MISSING, SIZE)
    mlp_dim: int = setting(dataclasses.MISSING, SIZE)
    patch_size: int = setting(dataclasses.MISSING, SIZE)
    image_size: int = setting(224, SIZE)
    gelu: str = setting("exact", OneOf(GELUS))
    layer_norm_eps: float = setting(1e-6, Real(0, 1, above=True, below=True))
    layer_scale: bool = setting(False, Flag())
    patch_bias: bool = setting(True, Flag(), before=True)
    key_bias: bool = setting(True, Flag(), before=True)
    registers: int = setting(0, Whole(0, 256), before=0)
    class_token: bool = setting(True, Flag(), before=True)
    positions: str = setting("table", OneOf(("table", "rope", "relative")), before="table")
    table_resize: str = setting("bicubic", OneOf(("bicubic", "antialias")), before="bicubic")
    pre_norm: bool = setting(False, Flag(), before=False)
    mlp: str = setting("plain", OneOf(("plain", "gated")), before="plain")
    pooling: str = setting("class", OneOf(("class", "mean", "attention")), before="class")
    dtype: str = setting("float32", OneOf(("float32", "bfloat16")))
    precision: str = setting("default", OneOf(PRECISIONS))
    remat: str = setting("none", OneOf(REMATS))
    attention: str = setting("xla", OneOf(ATTENTIONS))
    unroll: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.num_heads:
            raise UserError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}."
            )
        if self.pooling == "class" and not self.class_token:
            raise UserError("pooling 'class' reads the class token, and class_token is False.")
        if self.positions == "relative" and (self.registers or not self.class_token):
            raise UserError(
                "positions 'relative' are those of the class token and patches: set class_token to "
                "True and registers to 0."
            )
        if self.positions == "rope" and (size := self.width // self.num_heads) % 4:
            raise UserError(
                f"positions 'rope' turns heads of a multiple of 4 numbers; width {self.width} and "
                f"num_heads {self.num_heads} give {size}."
            )
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UserError(
                f"attention 'cudnn' computes in bfloat16, and dtype is {self.dtype!r}. Set dtype "
                "to 'bfloat16', or attention to 'xla'."
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_prefix(self) -> int:
        """The class token and the registers, which stand before the patches."""
        return self.class_token + self.registers

    @property
    def num_tokens(self) -> int:
        """Patches plus the class token and the registers."""
        return self.grid**2 + self.num_prefix

    def stated(self) -> dict[str, Any]:
        """The fields as files have them, without those that only newer kinds of ViTs need.

        Such a field has `before`, the value that all earlier ViTs have. It is left out if it has
        this value, so that earlier versions of fact-jax read the file.
        """
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.metadata.get("before", _NEVER)
        }

    def replace(self, **changes: Any) -> ViTConfig:
        """A copy with other values. Raises UserError for names and values that no ViT has."""
        names = [field.name for field in dataclasses.fields(self)]
        if unknown := sorted(changes.keys() - set(names)):
            raise UserError(f"A ViT has no setting {unknown[0]!r}; it has {', '.join(names)}.")
        return dataclasses.replace(self, **changes)


def _vit(size: str, patch_size: int, **changes: Any) -> ViTConfig:
    width, depth, num_heads = {
        "Ti": (192, 12, 3),
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "H": (1280, 32, 16),
    }[size]
    return ViTConfig(width, depth, num_heads, 4 * width, patch_size, **changes)


# DINOv2's files hold a 37 x 37 position table (518 pixels); it is mostly used at 224 pixels.
_DINO: dict[str, Any] = dict(layer_scale=True)
_REG: dict[str, Any] = dict(layer_scale=True, registers=4, table_resize="antialias")
_DINO3: dict[str, Any] = dict(
    layer_scale=True, registers=4, positions="rope", key_bias=False, layer_norm_eps=1e-5
)
_GATED: dict[str, Any] = dict(mlp="gated", gelu="silu")
_CLIP: dict[str, Any] = dict(pre_norm=True, patch_bias=False, gelu="quick", layer_norm_eps=1e-5)
_BEIT: dict[str, Any] = dict(layer_scale=True, positions="relative", key_bias=False, pooling="mean")
_SIGLIP: dict[str, Any] = dict(class_token=False, pooling="attention", gelu="tanh")

VARIANTS: dict[str, ViTConfig] = {
    "vit_ti16": _vit("Ti", 16),
    "vit_s16": _vit("S", 16),
    "vit_s32": _vit("S", 32),
    "vit_b16": _vit("B", 16),
    "vit_b32": _vit("B", 32),
    "vit_l16": _vit("L", 16),
    "vit_l32": _vit("L", 32),
    "vit_h14": _vit("H", 14),
    # The bundled model (docs/bundled_model.md).
    "vit_mini": ViTConfig(128, 6, 4, 512, patch_size=8, image_size=32),
    "dinov2_s14": _vit("S", 14, **_DINO),
    "dinov2_b14": _vit("B", 14, **_DINO),
    "dinov2_l14": _vit("L", 14, **_DINO),
    "dinov2_s14_reg": _vit("S", 14, **_REG),
    "dinov2_b14_reg": _vit("B", 14, **_REG),
    "dinov2_l14_reg": _vit("L", 14, **_REG),
    "dinov3_s16": _vit("S", 16, **_DINO3),
    "dinov3_s16plus": _vit("S", 16, **_DINO3, **_GATED),
    "dinov3_b16": _vit("B", 16, **_DINO3),
    "dinov3_l16": _vit("L", 16, **_DINO3),
    "dinov3_h16plus": ViTConfig(1280, 32, 20, 5120, patch_size=16, **_DINO3, **_GATED),
    "clip_b16": _vit("B", 16, **_CLIP),
    "clip_b32": _vit("B", 32, **_CLIP),
    "clip_l14": _vit("L", 14, **_CLIP),
    "siglip2_b16": _vit("B", 16, **_SIGLIP),
    "siglip2_so400m14": ViTConfig(1152, 27, 16, 4304, patch_size=14, **_SIGLIP),
    "mae_b16": _vit("B", 16),
    "beit_b16": _vit("B", 16, **_BEIT),
    "beit_l16": _vit("L", 16, **_BEIT),
}
"""The named shapes of ViTs; ``load_vit`` takes their names."""


def get_variant(name: str) -> ViTConfig:
    """The named variant's config. Raises UserError, with all names, for an unknown one."""
    if name not in VARIANTS:
        raise UserError(f"Unknown variant {name!r}. Known variants: {', '.join(VARIANTS)}.")
    return VARIANTS[name]
