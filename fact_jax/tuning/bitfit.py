"""BitFit: every bias of the ViT is trained, also in the norms and the patch embedding."""

import dataclasses
from typing import ClassVar

import jax

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked, from_base


@dataclasses.dataclass(frozen=True)
class BitFit:
    """The biases, which start at the base's values. `scale` is not used."""

    about: ClassVar[About] = About(
        "Ben Zaken et al., BitFit, ACL 2022; on ViTs Jia et al., Visual Prompt Tuning, ECCV 2022",
        "",
        "formula",
        ("The MLPs have no dropout, which VPT's network has.",),
    )
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        return from_base(base, lambda name: name.endswith("/bias") and _has(config, name))

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        return Adaptation(weights=factors)


def _has(config: ViTConfig, bias: str) -> bool:
    """Whether the published model has a bias of this name, or only our zeros."""
    of_keys = bias.startswith("Transformer/encoderblock/") and bias.endswith("/key/bias")
    return (config.key_bias or not of_keys) and (config.patch_bias or bias != "embedding/bias")
