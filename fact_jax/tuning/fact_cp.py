"""FacT-CP: the increments of all slices as a sum of r rank-one tensors, ``s U diag(c[l, i]) V``.

It is the canonical polyadic decomposition of FacT's 12 L x d x d tensor, with initial values by
analogy.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import assemble, init_uv, slices_per_block


@dataclasses.dataclass(frozen=True)
class FacTCP:
    """Factors U [d, r], C [l, 12, r], uniform on +-1, and V [r, d]: 2 d r + 12 L r numbers."""

    about: ClassVar[About] = About(
        "a relative of FacT, Jie & Deng, by the canonical polyadic decomposition",
        "",
        "ours",
    )
    rank: int = setting(32, SIZE)
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        key_uv, key_c = jax.random.split(key)
        shape = (config.depth, slices_per_block(config), self.rank)
        return {**init_uv(key_uv, config, self.rank), "C": uniform(key_c, shape, 1.0)}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        cores = factors["C"][..., None] * jnp.eye(self.rank, dtype=jnp.float32)[None, None]
        return assemble(factors["U"], cores, factors["V"], scale)
