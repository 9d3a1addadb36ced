"""FacT-TT whose U and V are shared by fewer slices: by one layer's, or by one kind's.

In FacT-TT all slices share U and V; these variants measure how much that costs. They have the same
initial values.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, OneOf, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import block_diagonal, linear
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import mlp_slices, slices_per_block


@dataclasses.dataclass(frozen=True)
class FacTShared:
    """U [n, d, r], S [l, 12, r, r] and V [n, r, d]: 2 n d r + 12 L r^2 numbers.

    Attributes:
      rank: r.
      scale: the increments' strength s.
      share: which slices share U and V: 'layer', those of a layer, n = L; 'kind', those of a kind
        (all queries, ...), n = 12.
    """

    about: ClassVar[About] = About(
        "FacT-TT with less sharing, to measure what sharing costs",
        "",
        "ours",
    )
    rank: int = setting(4, SIZE)
    scale: float = setting(1.0, SCALE)
    share: str = setting("layer", OneOf(("layer", "kind")))

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        s, r, d = slices_per_block(config), self.rank, config.width
        n = config.depth if self.share == "layer" else s
        key_u, key_s = jax.random.split(key)
        return {
            "U": linear(key_u, (n, d, r)),
            "S": linear(key_s, (config.depth, s, r, r)),
            "V": jnp.zeros((n, r, d), jnp.float32),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        axis = 1 if self.share == "layer" else 0
        u, v = (jnp.expand_dims(factors[name], axis) for name in "UV")
        lead = factors["S"].shape[:2]
        u = jnp.broadcast_to(u, (*lead, *u.shape[2:]))
        a = jnp.matmul(u, factors["S"], precision="highest")
        b = jnp.broadcast_to(scale * v, (*lead, *v.shape[2:]))
        g = mlp_slices(config)

        def fc1() -> LowRank:  # side by side
            return LowRank(_columns(a[:, 4 : 4 + g]), block_diagonal(b[:, 4 : 4 + g]))

        def fc2() -> LowRank:  # one below the other: the sum over slices of x_g a_g b_g
            return LowRank(block_diagonal(a[:, 4 + g :]), _rows(b[:, 4 + g :]))

        attention: dict[str, Any] = {
            name: LowRank(a[:, i], b[:, i]) for i, name in enumerate("qkvo")
        }
        return Adaptation(**attention, fc1=fc1(), fc2=fc2())


def _columns(parts: Array) -> Array:
    """[l, g, d, r] -> [l, d, g r]."""
    return parts.swapaxes(1, 2).reshape(parts.shape[0], parts.shape[2], -1)


def _rows(parts: Array) -> Array:
    """[l, g, r, d] -> [l, g r, d]."""
    return parts.reshape(parts.shape[0], -1, parts.shape[3])
