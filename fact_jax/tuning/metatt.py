"""MetaTT: one tensor-train of all slices, with cores for the layer and for the kind of slice."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import linear
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import assemble, init_uv, slices_per_block

PAPER = "Lopez-Piqueres et al., MetaTT: A Global Tensor-Train Adapter, arXiv 2506.09105"
INITIAL = "FacT-TT's initial values are taken."


@dataclasses.dataclass(frozen=True)
class MetaTT:
    """U [d, r], G [l, r, r], M [12, r, r], V [r, d], MetaTT-4D: 2 d r + (L + 12) r^2 numbers.

    Slice i of layer l changes by ``s U G[l] M[i] V``.
    """

    about: ClassVar[About] = About(PAPER, "", "abstract", (INITIAL,))
    chain: ClassVar[tuple[str, ...]] = ("U", "G", "M", "V")
    rank: int = setting(16, SIZE)
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """U and M uniform within PyTorch's Linear bound, G the identity, V zero."""
        key_uv, key_m = jax.random.split(key)
        return {**init_uv(key_uv, config, self.rank), **_cores(key_m, config, self.rank)}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        return assemble(factors["U"], _product(factors), factors["V"], scale)


@dataclasses.dataclass(frozen=True)
class MetaTTHeads:
    """U, G, M as MetaTT, H [h, r, r] and V [r, d / h], MetaTT-5D, for h attention heads.

    Head j of slice i of layer l, d / h columns, changes by ``s U G[l] M[i] H[j] V``:
    d r + (d / h) r + (L + 12 + h) r^2 numbers.
    """

    about: ClassVar[About] = About(PAPER, "", "abstract", (INITIAL,))
    chain: ClassVar[tuple[str, ...]] = ("U", "G", "M", "H", "V")
    rank: int = setting(16, SIZE)
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """Begins as MetaTT does, with H the identity."""
        r, heads = self.rank, config.num_heads
        key_uv, key_m = jax.random.split(key)
        return {
            "U": init_uv(key_uv, config, r)["U"],
            **_cores(key_m, config, r),
            "H": jnp.broadcast_to(jnp.eye(r, dtype=jnp.float32), (heads, r, r)),
            "V": jnp.zeros((r, config.width // heads), jnp.float32),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        v = jnp.einsum("hrt,tf->rhf", factors["H"], factors["V"], precision="highest")
        return assemble(factors["U"], _product(factors), v.reshape(self.rank, -1), scale)


def _cores(key: Array, config: ViTConfig, rank: int) -> Factors:
    eye = jnp.eye(rank, dtype=jnp.float32)
    return {
        "G": jnp.broadcast_to(eye, (config.depth, rank, rank)),
        "M": linear(key, (slices_per_block(config), rank, rank)),
    }


def _product(factors: Factors) -> Float[Array, "l s r r"]:
    """The core of each slice, ``G[l] @ M[i]``."""
    return jnp.einsum("lab,sbc->lsac", factors["G"], factors["M"], precision="highest")
