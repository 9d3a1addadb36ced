"""Full fine-tuning: every weight of the ViT is trained."""

import dataclasses
from typing import ClassVar

import jax

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked, from_base


@dataclasses.dataclass(frozen=True)
class Full:
    """The weights themselves, which start at the base's values. `scale` is not used."""

    about: ClassVar[About] = About(
        "Jia et al., Visual Prompt Tuning, ECCV 2022 (published numbers)",
        "",
        "formula",
    )
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        return from_base(base, lambda name: True)

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        return Adaptation(weights=factors)
