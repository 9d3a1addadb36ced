"""FacT-TT: the increments of all slices as a tensor-train, ``s * U @ S[l, i] @ V``.

The initial values are those of the released code.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import assemble, init_uv, mlp_slices, slices_per_block


@dataclasses.dataclass(frozen=True)
class FacTTT:
    """Tensor-train factors U [d, r], S [l, 12, r, r] and V [r, d]: 2 d r + 12 L r^2 numbers.

    Attributes:
      rank: r.
      scale: the increments' strength s.
    """

    about: ClassVar[About] = About(
        "Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI"
        " 2023",
        "JieShibo/PETL-ViT, FacT/fact_tt.py",
        "code",
    )
    shared: ClassVar[tuple[str, ...]] = ("U", "V")
    rank: int = setting(16, SIZE)
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """U and S uniform within PyTorch's Linear bound of their layer's fan-in, V zero.

        fc2's slices are one layer of fan-in 4r in the released code, so their bound is
        1/sqrt(4r); the others have 1/sqrt(r).
        """
        g, s, r = mlp_slices(config), slices_per_block(config), self.rank
        key_uv, key_s = jax.random.split(key)
        fan_in = jnp.where(jnp.arange(s, dtype=jnp.int32) < 4 + g, r, g * r)
        unit = jax.random.uniform(key_s, (config.depth, s, r, r), jnp.float32, minval=-1.0)
        cores = unit / jnp.sqrt(fan_in.astype(jnp.float32))[None, :, None, None]
        return {**init_uv(key_uv, config, r), "S": cores}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        return assemble(factors["U"], factors["S"], factors["V"], scale)
