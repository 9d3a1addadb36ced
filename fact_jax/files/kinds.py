"""The differences between kinds of ViTs, by the parameters that tell them."""

from collections.abc import Callable

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.parameters import MAP_HEAD, shapes
from fact_jax.errors import UserError

TABLE = "Transformer/posembed_input/pos_embedding"
RELATIVE = "Transformer/encoderblock/relative_positions"
# Parameters that a plain ViT has, and others that it has not.
_PLAIN = {"no class token": "cls", "no position table": TABLE}
_MORE = {
    "LayerScale": "Transformer/encoderblock/LayerScale_0",
    "registers": "registers",
    "a norm before its blocks": "Transformer/pre_norm/scale",
    "relative positions": RELATIVE,
    "gated MLPs": "Transformer/encoderblock/MlpBlock_3/Gate/kernel",
    "an attention pooling head": f"{MAP_HEAD}/probe",
}


def kind_by(has: Callable[[str], bool]) -> tuple[str, ...]:
    """The differences of a ViT from a plain one, by whether it has a parameter."""
    more = (what for what, parameter in _MORE.items() if has(parameter))
    return (*more, *(what for what, parameter in _PLAIN.items() if not has(parameter)))


def kind_of(config: ViTConfig) -> tuple[str, ...]:
    """The differences of a ViT from a plain one, in words."""
    mean = ("features of the patches' mean",) if config.pooling == "mean" else ()
    return (*kind_by(lambda parameter: parameter in shapes(config)), *mean)


def check_plain(config: ViTConfig, where: str, remedy: str) -> None:
    """Raises UserError for kinds of ViTs besides the plain one and DINOv2.

    Args:
      config: the ViT's.
      where: the place that knows those two alone, as the beginning of a sentence.
      remedy: a sentence on what to do.
    """
    if kind := [what for what in kind_of(config) if what != "LayerScale"]:
        raise UserError(
            f"{where} knows plain ViTs and DINOv2; this ViT has {', '.join(kind)}. {remedy}"
        )
