"""The shape of a Vision Transformer, and the named variants."""

from __future__ import annotations

import dataclasses
from typing import Any

from fact_jax.errors import UserError
from fact_jax.ranges import SIZE, Flag, OneOf, Real, Whole, check_fields, setting

PRECISIONS = ("default", "high", "highest")
REMATS = ("none", "attention", "block")
ATTENTIONS = ("xla", "cudnn")


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
      gelu: 'exact' (erf, as in timm and so in FacT) or 'tanh' (the original JAX code).
      layer_norm_eps: epsilon of every LayerNorm.
      layer_scale: whether the branches have DINOv2's per-channel gains.
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
    gelu: str = setting("exact", OneOf(("exact", "tanh")))
    layer_norm_eps: float = setting(1e-6, Real(0, 1, above=True, below=True))
    layer_scale: bool = setting(False, Flag())
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
    def num_tokens(self) -> int:
        """Patches plus the class token."""
        return self.grid**2 + 1

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
_DINO = dict(layer_scale=True)

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
}
"""The named shapes of ViTs; ``load_vit`` takes their names."""


def get_variant(name: str) -> ViTConfig:
    """The named variant's config. Raises UserError, with all names, for an unknown one."""
    if name not in VARIANTS:
        raise UserError(f"Unknown variant {name!r}. Known variants: {', '.join(VARIANTS)}.")
    return VARIANTS[name]
