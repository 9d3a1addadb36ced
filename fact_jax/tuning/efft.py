"""EFFT: attention and MLP have one pair of factors each, and a core for each kind of layer.

All layers share the increments. The initial values are FacT-TT's.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import linear
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class EFFT:
    """U [d, r], C [4, r, r], V [r, d] of attention; U_mlp [d, r], C_mlp [2, r, r], V_mlp [r, m].

    Kind i of attention changes by ``s U C[i] V``, fc1 by ``s U_mlp C_mlp[0] V_mlp``, and fc2 by
    ``s (U_mlp C_mlp[1] V_mlp)^T``: (3 d + m) r + 6 r^2 numbers for an MLP of width m.
    """

    about: ClassVar[About] = About(
        "EFFT: Effective Factor-Tuning, arXiv 2311.06749",
        "",
        "formula",
        ("FacT-TT's initial values are taken.",),
    )
    rank: int = setting(16, SIZE)
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """U and C uniform within PyTorch's Linear bound, V zero."""
        d, r = config.width, self.rank
        key_u, key_c, key_um, key_cm = jax.random.split(key, 4)
        return {
            "U": linear(key_u, (d, r)),
            "C": linear(key_c, (4, r, r)),
            "V": jnp.zeros((r, d), jnp.float32),
            "U_mlp": linear(key_um, (d, r)),
            "C_mlp": linear(key_cm, (2, r, r)),
            "V_mlp": jnp.zeros((r, config.mlp_dim), jnp.float32),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale

        def of_layers(x: Array) -> Array:
            return jnp.broadcast_to(x, (config.depth, *x.shape))

        u, v = of_layers(factors["U"]), of_layers(scale * factors["V"])
        um, vm = factors["U_mlp"], of_layers(scale * factors["V_mlp"])
        qkv = factors["C"][:3].swapaxes(0, 1).reshape(self.rank, -1)
        back = jnp.matmul(um, factors["C_mlp"][1], precision="highest").T
        return Adaptation(
            qkv=LowRank(of_layers(qkv), v, u),
            o=LowRank(of_layers(factors["C"][3]), v, u),
            fc1=LowRank(of_layers(factors["C_mlp"][0]), vm, of_layers(um)),
            fc2=LowRank(vm.swapaxes(1, 2), of_layers(back)),
        )
