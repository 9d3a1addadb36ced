"""FacT's view of a ViT: every block is cut into square d x d slices that share U and V.

The order of a block's slices is q, k, v, o, then fc1 cut along its output, then fc2 cut along its
input; for the usual mlp_dim = 4 d these are 12 slices, and 12 L in the whole net (FacT, section 3).
Letters in shapes: `l` layer, `s` slice, `d` width, `r` rank, `g` slices of one MLP layer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning.initial import linear

SQUARE = "FacT cuts the MLP into square slices, so mlp_dim must be a multiple of width"


def mlp_slices(config: ViTConfig) -> int:
    """Number g of d x d slices in fc1, and as many in fc2."""
    if config.mlp_dim % config.width:
        raise UserError(f"{SQUARE}; this ViT has {config.mlp_dim} and {config.width}.")
    return config.mlp_dim // config.width


def slices_per_block(config: ViTConfig) -> int:
    """Slices in a block: 4 of attention and 2 g of the MLP."""
    return 4 + 2 * mlp_slices(config)


def assemble(
    u: Float[Array, "d r"],
    cores: Float[Array, "l s r r"],
    v: Float[Array, "r d"],
    scale: float | Array,
) -> Adaptation:
    """The adaptation whose slice s of layer l is ``scale * u @ cores[l, s] @ v``."""
    depth, s, r, _ = cores.shape
    d, g = u.shape[0], (s - 4) // 2
    b = jnp.broadcast_to(scale * v, (depth, r, d))
    us = jnp.broadcast_to(u, (depth, d, r))

    def columns(first: int, last: int) -> Array:  # [l, s, r, r] -> [l, r, s r]
        return cores[:, first:last].swapaxes(1, 2).reshape(depth, r, -1)

    # fc2's rows are grouped by slice: U S on each of the g parts of its input.
    fc2 = jnp.einsum("dr,lsrt->lsdt", u, cores[:, 4 + g :], precision="highest")
    return Adaptation(
        qkv=LowRank(columns(0, 3), b, us),
        o=LowRank(columns(3, 4), b, us),
        fc1=LowRank(columns(4, 4 + g), b, us),
        fc2=LowRank(fc2.reshape(depth, g * d, r), b),
    )


def init_uv(key: Array, config: ViTConfig, rank: int) -> dict[str, jax.Array]:
    """U [d, r] uniform +-1/sqrt(d), PyTorch's Linear default; V [r, d] zero: no increment yet."""
    u = linear(key, (config.width, rank))
    return {"U": u, "V": jnp.zeros((rank, config.width), jnp.float32)}
