"""One block of the Vision Transformer, with everything that an adaptation can change in it.

Letters: `b` batch, `n` tokens, `h` heads or hidden values, `d` width, `p` prompts.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from fact_jax.backbone.activations import BOTTLENECK_ACTIVATIONS
from fact_jax.backbone.adaptation import (
    BYPASSES,
    NORMS,
    SITES,
    Adaptation,
    Bottleneck,
    LowRank,
    Prompts,
    magnitude_ratio,
    over_last,
)
from fact_jax.backbone.attention import attention
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.dense import RANK_VALUES, adapted_dense, dropout, increments
from fact_jax.backbone.kinds import MLPS, POSITIONS
from fact_jax.backbone.noise import IncrementNoise


@flax.struct.dataclass
class Mode:
    """How a pass is made: with the noise of training or without, increments merged or apart.

    Attributes:
      key: of the noise; None is off.
      dropout_rate, drop_path_rate: its rates, which may be traced; None is off.
      merged: whether increments become part of the kernels where nothing acts on them alone.
      increment_noise: of increments and bottlenecks; None is off.
    """

    key: Array | None = None
    dropout_rate: float | Array | None = None
    drop_path_rate: float | Array | None = None
    merged: bool = flax.struct.field(pytree_node=False, default=True)
    increment_noise: IncrementNoise | None = None


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


_LAYER_SCALES = {"attention": "LayerScale_0", "mlp": "LayerScale_1"}


@dataclasses.dataclass(frozen=True)
class Block:
    """One pre-norm block, ``Block(config, weights, changes, mode)(x)``.

    The tokens are the class token, the prompts, the registers and the patches; a ViT may have none
    of the first three.

    Attributes:
      weights, changes: those of this block, without the layer axis.
      class_only: whether the output is the class token alone.
      collect: whether the inputs of the six sites are returned with their outputs.
    """

    config: ViTConfig
    weights: dict[str, Any]
    changes: Adaptation
    mode: Mode = Mode()
    class_only: bool = False
    collect: bool = False

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        """Tokens [b, n, d] -> [b, n, d] ([b, 1, d]), and the outputs of the six sites by name.

        With `collect` also the sites' inputs: "qkv_input", "o_input", "fc1_input", "fc2_input".
        """
        prompts = self.changes.prompts
        x = x if prompts is None else self._prompted(prompts, x)

        y = self._norm("norm1", x)
        inputs = {"qkv_input": self._bypassed("before_attention", y)}
        q, k, v = self._qkv(inputs["qkv_input"])
        places = POSITIONS[self.config.positions]
        query, key = (places.turned(self.config, z, self._num_single) for z in (q, k))
        masked = None if prompts is None else prompts.hidden
        hidden = None if masked is None else (self._first, masked)
        if self.class_only:
            x, y = x[:, :1], y[:, :1]
        bias = places.bias(self.weights, q, k, self._num_single)
        attended = checkpoint_name(attention(self.config, query, key, v, hidden, bias), "attended")
        (o,) = self._dense(("o",), attended)
        x = checkpoint_name(x + self._branch("attention", x, y, o), "middle")

        y = self._norm("norm2", x)
        inputs |= {"o_input": attended, "fc1_input": self._bypassed("before_mlp", y)}
        (fc1,) = self._dense(("fc1",), inputs["fc1_input"])
        fc1 = checkpoint_name(fc1, "fc1")
        activated = MLPS[self.config.mlp](self.config, self.weights, fc1, inputs["fc1_input"])
        (fc2,) = self._dense(("fc2",), activated)
        x = self._bypassed("after_block", x + self._branch("mlp", x, y, fc2))
        outputs = dict(q=q, k=k, v=v, o=o, fc1=fc1, fc2=fc2)
        return x, {**outputs, **inputs, "fc2_input": activated} if self.collect else outputs

    @property
    def _first(self) -> int:
        """The place of the first prompt: behind the class token."""
        return int(self.config.class_token)

    @property
    def _num_single(self) -> int:
        """Tokens before the patches."""
        prompts = self.changes.prompts
        return self.config.num_prefix + (0 if prompts is None else prompts.tokens.shape[0])

    def _norm(self, name: str, x: Array) -> Array:
        return self._affine(name, norm(self.config, self.weights[NORMS[name]], x))

    def _affine(self, name: str, y: Array) -> Array:
        affine = self.changes.affines.get(name)
        return y if affine is None else affine(y)

    @property
    def _together(self) -> bool:
        """Whether one increment changes query, key and value, and nothing else does."""
        changes = self.changes
        apart = self.class_only or changes.q or changes.k or changes.v
        return isinstance(changes.qkv, LowRank) and not apart

    def _qkv(self, y: Array) -> list[Array]:
        """Query, key and value of tokens y; with `class_only` the class token's query alone."""
        if self._together:
            outputs = self._dense(("q", "k", "v"), y)
        else:
            (q,) = self._dense(("q",), y[:, :1] if self.class_only else y)
            outputs = [q, *self._dense(("k",), y), *self._dense(("v",), y)]
        return [checkpoint_name(y, name) for y, name in zip(outputs, "qkv", strict=True)]

    def _dense(self, sites: tuple[str, ...], y: Array) -> list[Array]:
        """Outputs of dense sites that share their input."""
        layers = [self.weights[SITES[name][0]][SITES[name][1]] for name in sites]
        pairs = self.changes.qkv if len(sites) > 1 else self.changes.site(sites[0])
        key = self._keys.get("".join(sites))
        mode = self.mode
        if mode.increment_noise is not None and pairs:
            outputs = adapted_dense(y, layers)
            widths = [out.shape[-1] for out in outputs]
            added = increments(y, widths, pairs, mode.dropout_rate, key)
            added = [self._noisy(name, z) for name, z in zip(sites, added, strict=True)]
            outputs = [out + z for out, z in zip(outputs, added, strict=True)]
        else:
            outputs = adapted_dense(y, layers, pairs, mode.dropout_rate, key, merged=mode.merged)
        outputs = [
            self._with_magnitudes(name, layer, out)
            for name, layer, out in zip(sites, layers, outputs, strict=True)
        ]
        return [self._affine(name, out) for name, out in zip(sites, outputs, strict=True)]

    def _with_magnitudes(self, site: str, layer: dict[str, Any], y: Array) -> Array:
        """A site's output with the norms of its kernel's columns that the changes ask for."""
        wanted = self.changes.magnitudes.get(site)
        if wanted is None:
            return y
        ratio = over_last(magnitude_ratio(layer["kernel"], self.changes.site(site), wanted), y)
        bias = over_last(layer["bias"], y)
        return (y - bias) * ratio + bias

    def _branch(self, part: str, x: Array, y: Array, z: Array) -> Array:
        """The sum that attention or MLP adds to the stream x, from its input y and its output z."""
        if self.config.layer_scale:
            z = z * over_last(self.weights[_LAYER_SCALES[part]], z)
        z = self._drop_path(part, z)
        z = self._bypassed(f"beside_{part}", z, y)
        z = self._bypassed(f"across_{part}", z, x)
        return self._bypassed(f"after_{part}", z)

    def _bypassed(self, place: str, z: Array, x: Array | None = None) -> Array:
        """Adds the bottlenecks of a place to z; their input is x, or else the sum so far."""
        for i, f in enumerate(self.changes.bypasses.get(place, ())):
            name = f"{place} {i}"
            z = z + self._noisy(name, self._bottleneck(f, z if x is None else x, name))
        return z

    def _bottleneck(self, f: Bottleneck, x: Array, name: str) -> Array:
        """Applies f to tokens x [b, n, d], or to the class token alone, [b, 1, d]."""
        act = BOTTLENECK_ACTIVATIONS[f.activation]
        z = x if f.norm is None else norm(self.config, f.norm, x, f.norm_eps)
        z = z @ f.down.astype(x.dtype)
        z = act(z if f.down_bias is None else z + over_last(f.down_bias, z))
        if f.conv is not None:
            z = self._convolved(f.conv.astype(x.dtype), z)
            z = act(z if f.conv_bias is None else z + over_last(f.conv_bias, z))
        z = self._dropout(f"{name} dropout", z)
        z = checkpoint_name(z, RANK_VALUES) @ f.up.astype(x.dtype)
        z = z if f.up_bias is None else z + over_last(f.up_bias, z)
        return self._drop_path(f"{name} path", z) if f.drop_path else z

    def _convolved(self, kernel: Array, z: Array) -> Array:
        """Convolves the grid of patches; for it the other tokens are images of one pixel."""
        single, grid = z[:, : self._num_single], z[:, self._num_single :]
        z = single @ kernel[1, 1]  # an image of one pixel sees the kernel's centre only
        if side := math.isqrt(grid.shape[1]):
            image = grid.reshape(grid.shape[0], side, side, -1)
            image = jax.lax.conv_general_dilated(
                image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            z = jnp.concatenate([z, image.reshape(grid.shape)], axis=1)
        return z

    def _prompted(self, prompts: Prompts, x: Array) -> Array:
        """Puts the block's prompts after the class token of x [b, 1 + p + n, d]."""
        first, end = self._first, self._first + prompts.tokens.shape[0]
        tokens = jnp.broadcast_to(
            prompts.tokens.astype(x.dtype), (x.shape[0], *prompts.tokens.shape)
        )
        tokens = self._dropout("prompts", tokens)
        if prompts.kept is not None:
            tokens = jnp.where(prompts.kept[None, :, None], x[:, first:end], tokens)
        return jnp.concatenate([x[:, :first], tokens, x[:, end:]], axis=1)

    def _dropout(self, name: str, z: Array) -> Array:
        rate = self.mode.dropout_rate
        return z if rate is None else dropout(z, rate, self._keys[name])

    def _noisy(self, name: str, increment: Array) -> Array:
        """An increment or a bottleneck's output, multiplied by the noise of this name, if any."""
        noise = self.mode.increment_noise
        if noise is None:
            return increment
        more = (f"{p} {i}" for p in BYPASSES for i in range(len(self.changes.bypasses.get(p, ()))))
        return noise.times(increment, [*SITES, *more].index(name))

    def _drop_path(self, name: str, y: Array) -> Array:
        """Stochastic depth, which drops y for whole images."""
        rate = self.mode.drop_path_rate
        if rate is None:
            return y
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        mask = jax.random.bernoulli(self._keys[name], keep, (y.shape[0], 1, 1))
        return jnp.where(mask, y.astype(jnp.float32) / keep, 0).astype(y.dtype)

    @functools.cached_property
    def _keys(self) -> dict[str, Array]:
        """Keys by the name of what draws with them.

        A name's place in its list decides its random numbers, and every stored result depends on
        them: what draws from now on is named last. Parts that only some methods have begin at 8, so
        that the others' numbers do not depend on them.
        """
        key, depth = self.mode.key, self.mode.drop_path_rate is not None
        if key is None:
            return {}
        sites = ("qkv",) if self._together else ("q", "k", "v")
        attention, mlp = (("attention",), ("mlp",)) if depth else ((), ())
        names = (*sites, "o", *attention, "fc1", "fc2", *mlp)
        # fold_in(key, i) is split(key, 8)[i].
        more = {name: jax.random.fold_in(key, i) for i, name in enumerate(self._drawing(), 8)}
        return {**dict(zip(names, jax.random.split(key, 8), strict=False)), **more}

    def _drawing(self) -> Iterator[str]:
        """Names of the changes that draw random numbers."""
        dropout, path = (
            rate is not None for rate in (self.mode.dropout_rate, self.mode.drop_path_rate)
        )
        if dropout and self.changes.prompts is not None:
            yield "prompts"
        for place in BYPASSES:
            for i, f in enumerate(self.changes.bypasses.get(place, ())):
                if dropout:
                    yield f"{place} {i} dropout"
                if f.drop_path and path:
                    yield f"{place} {i} path"
