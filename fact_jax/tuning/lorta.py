"""LoRTA: one sum of r rank-one tensors for all heads of query, key, value and output.

It is a canonical polyadic decomposition over (width, width of a head, heads, layers, 4), with
initial values by analogy with LoRA.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, Whole, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import linear, uniform
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class LoRTA:
    """A [d, r], B [d / h, r], H [h, r], G [l, r], M [4, r] for h heads.

    They are (d + d / h + h + L + 4) r numbers. Head j of kind m in layer l changes by
    ``s A diag(G[l] M[m] H[j]) B^T``, [d, d / h]; that of the output projection by its transpose.
    """

    about: ClassVar[About] = About(
        "Hounie et al., LoRTA: Low Rank Tensor Adaptation of Large Language Models, arXiv "
        "2410.04060",
        "",
        "formula",
        ("The initial values are by analogy with LoRA.",),
    )
    rank: int = setting(16, Whole(1, 1024))  # its cores are r x r
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """A uniform within PyTorch's Linear bound, H, G and M on +-1, B zero."""
        r, heads = self.rank, config.num_heads
        key_a, key_h, key_g, key_m = jax.random.split(key, 4)
        return {
            "A": linear(key_a, (config.width, r)),
            "B": jnp.zeros((config.width // heads, r), jnp.float32),
            "H": uniform(key_h, (heads, r), 1.0),
            "G": uniform(key_g, (config.depth, r), 1.0),
            "M": uniform(key_m, (4, r), 1.0),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        depth, r = config.depth, self.rank
        heads = jnp.einsum("hr,fr->rhf", factors["H"], factors["B"]).reshape(r, -1)  # [r, d]
        weights = scale * factors["G"][:, None] * factors["M"][None]  # [l, 4, r]
        cores = weights[..., None] * jnp.eye(r, dtype=jnp.float32)[None, None]
        u = jnp.broadcast_to(factors["A"], (depth, *factors["A"].shape))
        b = jnp.broadcast_to(heads, (depth, *heads.shape))
        qkv = cores[:, :3].swapaxes(1, 2).reshape(depth, r, -1)
        o = heads.T[None] * weights[:, 3][:, None]
        return Adaptation(qkv=LowRank(qkv, b, u), o=LowRank(o, u.swapaxes(1, 2)))
