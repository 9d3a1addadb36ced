"""RepAdapter: linear bottlenecks before attention and MLP, which merge into their weights."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Bottleneck
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, SIZE, Flag, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import block_diagonal, xavier
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class RepAdapter:
    """``y + s up(down(y))`` of a branch's normalised input y; `up` is cut into groups.

    Each bottleneck has d h + h + d h / groups + d numbers, and `up` begins at zero.

    Attributes:
      width: h.
      groups: of `up`; group i of the outputs reads group i of the h hidden values.
      scale: s.
      attention_only: whether the bottleneck before the MLP is left out.
    """

    about: ClassVar[About] = About(
        "Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, 2023",
        "luogen1996/RepAdapter, repadapter.py",
        "code",
    )
    width: int = setting(8, SIZE)
    groups: int = setting(2, SIZE)
    scale: float = setting(1.0, SCALE)
    attention_only: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.groups:
            raise UserError(f"width {self.width} is not a multiple of groups {self.groups}.")

    @property
    def _places(self) -> tuple[str, ...]:
        return ("before_attention",) if self.attention_only else ("before_attention", "before_mlp")

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        depth, d, h, g = config.depth, config.width, self.width, self.groups
        if d % g:
            raise UserError(f"The ViT's width {d} is not a multiple of groups {g}.")
        factors: Factors = {}
        for i, place in enumerate(self._places):
            factors |= {
                f"{place}_down": xavier(jax.random.fold_in(key, i), (depth, d, h)),
                f"{place}_down_bias": jnp.zeros((depth, h), jnp.float32),
                f"{place}_up": jnp.zeros((depth, g, h // g, d // g), jnp.float32),
                f"{place}_up_bias": jnp.zeros((depth, d), jnp.float32),
            }
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        return Adaptation(
            bypasses={
                place: (
                    Bottleneck(
                        factors[f"{place}_down"],
                        scale * block_diagonal(factors[f"{place}_up"]),
                        factors[f"{place}_down_bias"],
                        scale * factors[f"{place}_up_bias"],
                    ),
                )
                for place in self._places
            }
        )
