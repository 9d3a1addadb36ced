"""Kinds of ViTs, and the models of timm that read the same features."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.hf_models import BEIT
from fact_jax.files.kinds import kind_of


class TimmModel(NamedTuple):
    """A model of timm, whose sizes ``model_args`` replace.

    Attributes:
      architecture: its name.
      layer_norm_eps: its LayerNorms' epsilon, which no argument sets.
      class_row: whether its position table has a row for the class token.
      layout: the title of its layout (layouts.py).
      gelu: its MLPs' function, if no argument sets it.
      arguments: further ones of its class.
    """

    architecture: str
    layer_norm_eps: float
    class_row: bool = True
    layout: str = "timm ViT"
    gelu: str = ""
    arguments: Mapping[str, Any] = {}


_TOKEN = {"global_pool": "token"}
_TIMM: dict[tuple[str, ...], TimmModel] = {
    (): TimmModel("vit_base_patch16_224", 1e-6),
    ("LayerScale",): TimmModel("vit_base_patch16_224", 1e-6),
    ("LayerScale", "registers"): TimmModel("vit_small_patch14_reg4_dinov2", 1e-6, False),
    ("a norm before its blocks",): TimmModel("vit_base_patch16_clip_quickgelu_224", 1e-5),
    ("an attention pooling head", "no class token"): TimmModel("vit_base_patch16_siglip_224", 1e-6),
    ("LayerScale", "registers", "no position table"): TimmModel(
        "vit_small_patch16_dinov3", 1e-5, True, "timm DINOv3", "exact", _TOKEN
    ),
    ("LayerScale", "registers", "gated MLPs", "no position table"): TimmModel(
        "vit_small_plus_patch16_dinov3",
        1e-5,
        layout="timm DINOv3 with gated MLPs",
        gelu="silu",
        arguments=_TOKEN,
    ),
    BEIT: TimmModel("beit_base_patch16_224", 1e-6, layout="timm BEiT", gelu="exact"),
}


def timm_model(config: ViTConfig) -> TimmModel:
    """The model of timm for a ViT. Raises UserError if there is none."""
    kind = kind_of(config)
    if kind not in _TIMM:
        raise UserError(
            f"This ViT has {', '.join(kind)}, which is not written for timm. Export it with "
            "--format onnx or stablehlo."
        )
    model = _TIMM[kind]
    if model.gelu not in ("", config.gelu):
        raise UserError(
            f"The MLPs of timm's {model.architecture} have the function {model.gelu!r}, and this "
            f"ViT has {config.gelu!r}. Export it with --format onnx or stablehlo."
        )
    return model
