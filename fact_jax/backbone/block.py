"""One block of the Vision Transformer, with everything that an adaptation can change in it.

Letters: `b` batch, `n` tokens, `h` heads or hidden values, `d` width, `p` prompts.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from fact_jax.backbone.adaptation import (
    NORMS,
    SITES,
    Adaptation,
    Bottleneck,
    LowRank,
    Prompts,
    over_last,
    override,
)
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.dense import RANK_VALUES, adapted_dense, dropout


class Noise(NamedTuple):
    """Randomness of training: a key, and two rates, which may be traced; None is off."""

    key: Array
    dropout_rate: float | Array | None = None
    drop_path_rate: float | Array | None = None


def norm(
    config: ViTConfig, weights: dict[str, Any], x: Array, epsilon: float | None = None
) -> Array:
    """LayerNorm over the last axis, computed in float32 and returned in x's dtype.

    `epsilon` is by default the ViT's.
    """
    epsilon = config.layer_norm_eps if epsilon is None else epsilon
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(axis=-1, keepdims=True) + epsilon)
    return (y * over_last(weights["scale"], y) + over_last(weights["bias"], y)).astype(x.dtype)


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """Exact GELU, computed in float32. jax.nn.gelu's `erfc` costs three times the operations."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    y = x.astype(jnp.float32)
    cdf = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
    slope = cdf + y * jnp.exp(-0.5 * y * y) * (2 * jnp.pi) ** -0.5
    return (y * cdf).astype(x.dtype), t * slope.astype(t.dtype)


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


def _attention(
    config: ViTConfig, q: Array, k: Array, v: Array, hidden: Array | None = None
) -> Array:
    """Multi-head attention of q [b, m, d] over k and v [b, n, d]; [b, m, d].

    `hidden` [p] masks tokens after the first. The fused kernel takes neither a mask nor a single
    query. The arrays are head-major: XLA's CPU code is far faster on [b, h, n, d/h].
    """

    def heads(y: Array) -> Array:
        return y.reshape(*y.shape[:2], config.num_heads, y.shape[-1] // config.num_heads)

    if config.attention == "cudnn" and hidden is None and q.shape == k.shape:
        return _fused_attention(heads(q), heads(k), heads(v)).reshape(q.shape)

    def split(y: Array) -> Array:
        return heads(y).swapaxes(1, 2)

    scores = (split(q) * (q.shape[-1] // config.num_heads) ** -0.5) @ split(k).swapaxes(-1, -2)
    if hidden is not None:
        seen = jnp.ones(scores.shape[-1], bool).at[1 : 1 + len(hidden)].set(~hidden)
        scores = jnp.where(seen[None, None, None], scores, -1e30)
    return (_softmax(scores) @ split(v)).swapaxes(1, 2).reshape(q.shape)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
}


def _drop_path(y: Array, rate: float | Array, key: Array) -> Array:
    """Stochastic depth, which drops y for whole images."""
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    mask = jax.random.bernoulli(key, keep, (y.shape[0], 1, 1))
    return jnp.where(mask, y.astype(jnp.float32) / keep, 0).astype(y.dtype)


def _bottleneck(
    config: ViTConfig,
    f: Bottleneck,
    x: Array,
    num_prompts: int,
    noise: Noise | None,
    keys: Iterator[Array],
) -> Array:
    """Applies f to tokens x [b, n, d], or to the class token alone, [b, 1, d]."""
    act = _ACTIVATIONS[f.activation]
    z = x if f.norm is None else norm(config, f.norm, x, f.norm_eps)
    z = z @ f.down.astype(x.dtype)
    z = act(z if f.down_bias is None else z + over_last(f.down_bias, z))
    if f.conv is not None:
        kernel = f.conv.astype(x.dtype)
        single, grid = z[:, : 1 + num_prompts], z[:, 1 + num_prompts :]
        z = single @ kernel[1, 1]  # an image of one pixel sees the kernel's centre only
        if side := math.isqrt(grid.shape[1]):
            image = grid.reshape(len(grid), side, side, -1)
            image = jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            z = jnp.concatenate([z, image.reshape(grid.shape)], axis=1)
        z = act(z if f.conv_bias is None else z + over_last(f.conv_bias, z))
    if noise is not None and noise.dropout_rate is not None:
        z = dropout(z, noise.dropout_rate, next(keys))
    z = checkpoint_name(z, RANK_VALUES) @ f.up.astype(x.dtype)
    z = z if f.up_bias is None else z + over_last(f.up_bias, z)
    if f.drop_path and noise is not None and noise.drop_path_rate is not None:
        z = _drop_path(z, noise.drop_path_rate, next(keys))
    return z


def _prompted(x: Array, prompts: Prompts, noise: Noise | None, keys: Iterator[Array]) -> Array:
    """Puts a block's prompts after the class token of x [b, 1 + p + n, d]."""
    p = prompts.tokens.shape[0]
    tokens = jnp.broadcast_to(prompts.tokens.astype(x.dtype), (len(x), *prompts.tokens.shape))
    if noise is not None and noise.dropout_rate is not None:
        tokens = dropout(tokens, noise.dropout_rate, next(keys))
    if prompts.kept is not None:
        tokens = jnp.where(prompts.kept[None, :, None], x[:, 1 : 1 + p], tokens)
    return jnp.concatenate([x[:, :1], tokens, x[:, 1 + p :]], axis=1)


def block(
    config: ViTConfig,
    class_only: bool,
    x: Array,
    weights: dict[str, Any],
    changes: Adaptation,
    noise: Noise | None,
) -> tuple[Array, dict[str, Array]]:
    """One pre-norm block, [b, n, d] -> [b, n, d], and the outputs of its six sites by name.

    The tokens are the class token, the prompts if there are any, and the patches. With `class_only`
    the output is the class token alone, [b, 1, d].
    """
    keys = iter(() if noise is None else jax.random.split(noise.key, 8))
    # Keys of parts that only some methods have: the other methods' random numbers do not change.
    # They begin at 8, because fold_in(key, i) is split(key, 8)[i].
    more = (jax.random.fold_in(noise.key, i) for i in range(8, 100)) if noise else iter(())
    rate = None if noise is None else noise.dropout_rate
    weights = override(weights, changes.weights)
    num_prompts = 0 if changes.prompts is None else changes.prompts.tokens.shape[0]

    def normed(name: str, x: Array) -> Array:
        y = norm(config, weights[NORMS[name]], x)
        return changes.affines[name](y) if name in changes.affines else y

    def dense(y: Array, names: tuple[str, ...], pairs: tuple[LowRank, ...]) -> list[Array]:
        layers = [weights[SITES[name][0]][SITES[name][1]] for name in names]
        key = None if noise is None else next(keys)
        outputs = adapted_dense(y, layers, pairs, None if noise is None else rate, key)
        return [
            changes.affines[name](out) if name in changes.affines else out
            for name, out in zip(names, outputs, strict=True)
        ]

    def branch(y: Array, name: str) -> Array:
        if config.layer_scale:
            y = y * over_last(weights[name], y)
        if noise is not None and noise.drop_path_rate is not None:
            y = _drop_path(y, noise.drop_path_rate, next(keys))
        return y

    def bypasses(place: str, x: Array, total: Array) -> Array:
        for f in changes.bypasses.get(place, ()):
            total = total + _bottleneck(config, f, x, num_prompts, noise, more)
        return total

    def behind(part: str, x: Array, y: Array, z: Array) -> Array:
        """The sum added to the stream x, for a branch's input y and output z."""
        total = bypasses(f"across_{part}", x, bypasses(f"beside_{part}", y, z))
        for f in changes.bypasses.get(f"after_{part}", ()):
            total = total + _bottleneck(config, f, total, num_prompts, noise, more)
        return total

    def before(part: str, y: Array) -> Array:
        for f in changes.bypasses.get(f"before_{part}", ()):
            y = y + _bottleneck(config, f, y, num_prompts, noise, more)
        return y

    if changes.prompts is not None:
        x = _prompted(x, changes.prompts, noise, more)
    normal = normed("norm1", x)
    y = before("attention", normal)
    if class_only:
        x, normal, first = x[:, :1], normal[:, :1], y[:, :1]
        (q,) = dense(first, ("q",), changes.site("q"))
        (k,) = dense(y, ("k",), changes.site("k"))
        (v,) = dense(y, ("v",), changes.site("v"))
    elif isinstance(changes.qkv, LowRank) and not (changes.q or changes.k or changes.v):
        q, k, v = dense(y, ("q", "k", "v"), (changes.qkv,))
    else:
        q, k, v = (dense(y, (name,), changes.site(name))[0] for name in "qkv")
    q, k, v = (checkpoint_name(y, name) for y, name in zip((q, k, v), "qkv", strict=True))
    hidden = None if changes.prompts is None else changes.prompts.hidden
    attended = checkpoint_name(_attention(config, q, k, v, hidden), "attended")
    (o,) = dense(attended, ("o",), changes.site("o"))
    x = checkpoint_name(x + behind("attention", x, normal, branch(o, "LayerScale_0")), "middle")
    normal = normed("norm2", x)
    (fc1,) = dense(before("mlp", normal), ("fc1",), changes.site("fc1"))
    fc1 = checkpoint_name(fc1, "fc1")
    y = _gelu(fc1) if config.gelu == "exact" else jax.nn.gelu(fc1)
    (fc2,) = dense(y, ("fc2",), changes.site("fc2"))
    x = x + behind("mlp", x, normal, branch(fc2, "LayerScale_1"))
    return x, dict(q=q, k=k, v=v, o=o, fc1=fc1, fc2=fc2)
