"""FacT-TK: the increments of all slices as a Tucker decomposition, ``s * U @ (C P_i) @ V``.

The initial values and the interleaved cores of the MLP are those of the released code.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, OneOf, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import assemble, init_uv, slices_per_block


@dataclasses.dataclass(frozen=True)
class FacTTK:
    """Tucker factors U [d, r], C [r, r, r], P [r, 12 l], V [r, d]: 2 d r + 12 L r + r^3 numbers.

    Slice i of the net has the core ``C @ P[:, i]`` [r in, r out]; i counts block by block.

    Attributes:
      rank: r.
      scale: the increments' strength s.
      mlp_cores: how a block's MLP uses its cores. 'released' copies the released code, which
        reshapes the [r, r, g] cores of fc1 (and of fc2, transposed) to [r, g r] without a
        permutation, so that each slice takes r/g columns of all g cores: its checkpoints and
        results need this. 'formula' gives each slice its own core, as the paper writes it. Both
        have the same size.
    """

    about: ClassVar[About] = About(
        "Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI"
        " 2023",
        "JieShibo/PETL-ViT, FacT/fact_tk.py",
        "code",
    )
    shared: ClassVar[tuple[str, ...]] = ("U", "C", "V")
    rank: int = setting(32, SIZE)
    scale: float = setting(1.0, SCALE)
    mlp_cores: str = setting("released", OneOf(("released", "formula")))

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """U as in FacT-TT, V zero, C and P Xavier-uniform: bounds sqrt(3)/r, sqrt(6/(r+12L))."""
        r, columns = self.rank, config.depth * slices_per_block(config)
        key_uv, key_c, key_p = jax.random.split(key, 3)
        c = jax.random.uniform(key_c, (r, r, r), jnp.float32, minval=-1.0) * (3**0.5 / r)
        p = (
            jax.random.uniform(key_p, (r, columns), jnp.float32, minval=-1.0)
            * (6 / (r + columns)) ** 0.5
        )
        return {**init_uv(key_uv, config, r), "C": c, "P": p}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        r, s = self.rank, slices_per_block(config)
        p = factors["P"].reshape(r, config.depth, s)
        cores = jnp.einsum("abk,kls->lsab", factors["C"], p, precision="highest")
        return assemble(factors["U"], self.of_slices(cores), factors["V"], scale)

    def of_slices(self, cores: Shaped[Array, "l s r r"]) -> Shaped[Array, "l s r r"]:
        """The cores [r in, r out] that slices have, of the cores ``C @ P[:, i]``: `mlp_cores`."""
        if self.mlp_cores == "formula":
            return cores
        g = (cores.shape[1] - 4) // 2
        attention, fc1, fc2 = cores[:, :4], cores[:, 4 : 4 + g], cores[:, 4 + g :]
        fc1, fc2 = _interleave(fc1), _interleave(fc2).swapaxes(-1, -2)
        return jnp.concatenate([attention, fc1, fc2], axis=1)


def _interleave(cores: Shaped[Array, "l g r r"]) -> Shaped[Array, "l g r r"]:
    """Interleaves as ``C[..., :].reshape(r, g r)`` and a cut into g groups of r columns do."""
    depth, g, r, _ = cores.shape
    columns = cores.transpose(0, 2, 3, 1).reshape(depth, r, g, r)  # [l, a, (j, m)] -> groups of r
    return columns.swapaxes(1, 2)
