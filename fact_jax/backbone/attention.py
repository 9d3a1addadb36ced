"""Multi-head attention, by XLA or by cuDNN's fused kernel.

Letters: `b` batch, `n` tokens, `h` heads, `d` width, `p` prompts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from fact_jax.backbone.config import ViTConfig


@jax.custom_jvp
def _softmax(scores: Array) -> Array:
    """Softmax over the last axis, computed in float32."""
    return jax.nn.softmax(scores.astype(jnp.float32)).astype(scores.dtype)


@_softmax.defjvp
def _softmax_jvp(primals: Any, tangents: Any) -> Any:
    # The rule of jax.nn.softmax, on an array that has a name and the compute type.
    named = checkpoint_name(_softmax(*primals), "probabilities")
    y, t = named.astype(jnp.float32), tangents[0].astype(jnp.float32)
    return named, (y * (t - (y * t).sum(axis=-1, keepdims=True))).astype(named.dtype)


def _fused_attention(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's attention on [b, n, h, d/h]. Its gradient, as jax calls it, needs an even number of
    tokens. A ViT has an odd number, so a token is added and masked out."""
    n = q.shape[1]
    if n % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # Under vmap the kernel needs lengths that are mapped as q is, so they are computed from q.
    lengths = n + 0 * jnp.isnan(q[:, 0, 0, 0]).astype(jnp.int32)
    q, k, v = (jnp.pad(y, ((0, 0), (0, 1), (0, 0), (0, 0))) for y in (q, k, v))
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )[:, :n]


def attention(
    config: ViTConfig,
    q: Array,
    k: Array,
    v: Array,
    hidden: tuple[int, Array] | None = None,
    bias: Array | None = None,
) -> Array:
    """Multi-head attention of q [b, m, d] over k and v [b, n, d]; [b, m, d].

    `hidden` is the place of the first prompt, and a mask [p] of the prompts that no query sees;
    `bias` [h, m, n] is added to the scores. The fused kernel takes no mask, no bias and no single
    query. The arrays are head-major: XLA's CPU code
    is far faster on [b, h, n, d/h].
    """

    def heads(y: Array) -> Array:
        return y.reshape(*y.shape[:2], config.num_heads, y.shape[-1] // config.num_heads)

    plain = hidden is None and bias is None and q.shape == k.shape
    if config.attention == "cudnn" and plain:
        return _fused_attention(heads(q), heads(k), heads(v)).reshape(q.shape)

    def split(y: Array) -> Array:
        return heads(y).swapaxes(1, 2)

    scores = (split(q) * (q.shape[-1] // config.num_heads) ** -0.5) @ split(k).swapaxes(-1, -2)
    if bias is not None:
        scores = scores + bias[None].astype(scores.dtype)
    if hidden is not None:
        first, masked = hidden
        seen = jnp.ones(scores.shape[-1], bool)
        seen = seen.at[first : first + len(masked)].set(~masked)
        scores = jnp.where(seen[None, None, None], scores, -1e30)
    return (_softmax(scores) @ split(v)).swapaxes(1, 2).reshape(q.shape)
