"""The Vision Transformer: frozen parameters and an adaptation go in, features come out.

Parameter names are those of the Google `.npz` files, with the blocks stacked: a leaf under
`Transformer/encoderblock` has a leading layer axis, and the forward pass is one scan over it.
Attention kernels are stored as plain matrices [l, d, d] (heads contiguous), so that the six dense
sites of the blocks are the paper's 12 L x d x d tensor.
Letters: `b` batch, `n` tokens, `h` heads, `d` width, `l` layer.
"""

from __future__ import annotations

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import SITES, Adaptation, adapted_dense
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.positions import resize_positions


class Dense(nn.Module):
    """Kernel [d, e] and bias [e] as float32 parameters; the product is `adapted_dense`."""

    features: int

    @nn.compact
    def __call__(self, x, pair=None, dropout_rate=0.0, key=None):
        kernel = self.param(
            "kernel", nn.initializers.xavier_uniform(), (x.shape[-1], self.features)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return adapted_dense(x, kernel, bias, pair, dropout_rate, key)


def layer_norm(config: ViTConfig, name: str) -> nn.LayerNorm:
    """In float32, and not by flax's default E[x^2] - E[x]^2.

    That is 1e-3 wrong where a token's channels have a mean of 100 standard deviations (1e-5 at 10);
    the variance of the centred values is as fast (tests/parity).
    """
    return nn.LayerNorm(
        config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


class Attention(nn.Module):
    """Multi-head self-attention, head-major: XLA's CPU code is far faster on [b, h, n, d/h]."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x, dense):
        b, n, d = x.shape
        heads = self.config.num_heads

        def split(y):
            return y.reshape(b, n, heads, d // heads).swapaxes(1, 2)

        q, k, v = (split(dense(x, Dense(d, name=SITES[s][1]), s)) for s in "qkv")
        scores = (q * (d // heads) ** -0.5) @ k.swapaxes(-1, -2)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(x.dtype)
        out = (weights @ v).swapaxes(1, 2).reshape(b, n, d)
        return dense(out, Dense(d, name=SITES["o"][1]), "o")


class Mlp(nn.Module):
    config: ViTConfig

    @nn.compact
    def __call__(self, x, dense):
        y = dense(x, Dense(self.config.mlp_dim, name=SITES["fc1"][1]), "fc1")
        y = jax.nn.gelu(y, approximate=self.config.gelu == "tanh")
        return dense(y, Dense(self.config.width, name=SITES["fc2"][1]), "fc2")


class Block(nn.Module):
    """One pre-norm block; `layer` is (adaptation slice, stochastic depth rate of this layer)."""

    config: ViTConfig
    train: bool

    @nn.compact
    def __call__(self, x, layer, dropout_rate):
        adaptation, drop_path_rate = layer

        def dense(y, module, site):
            key = self.make_rng("dropout") if self.train else None
            pair = getattr(adaptation, site)
            return module(y, pair, dropout_rate, key)

        def norm(y, name):
            return layer_norm(self.config, name)(y).astype(x.dtype)

        def branch(y, name):
            if self.config.layer_scale:
                y = y * self.param(name, nn.initializers.ones, (y.shape[-1],)).astype(y.dtype)
            if self.train:  # stochastic depth: drop the branch for whole images
                keep = 1.0 - drop_path_rate
                mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (y.shape[0], 1, 1))
                y = jnp.where(mask, y / keep, 0).astype(y.dtype)  # divided in float32
            return y

        attention = Attention(self.config, name="MultiHeadDotProductAttention_1")
        x = x + branch(attention(norm(x, "LayerNorm_0"), dense), "LayerScale_0")
        mlp = Mlp(self.config, name="MlpBlock_3")
        x = x + branch(mlp(norm(x, "LayerNorm_2"), dense), "LayerScale_1")
        self.sow("intermediates", "tokens", x)  # kept only where a caller asks for it
        return x, None


class Encoder(nn.Module):
    config: ViTConfig

    @nn.compact
    def __call__(self, x, adaptation, train, dropout_rate, drop_path_rate):
        config = self.config
        x = x + PositionTable(config, name="posembed_input")(x).astype(x.dtype)
        rates = jnp.linspace(0.0, 1.0, config.depth) * drop_path_rate
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=config.depth,
        )
        x, _ = blocks(config, train, name="encoderblock")(x, (adaptation, rates), dropout_rate)
        # The norm acts on each token alone, and only the class token is read.
        return layer_norm(config, "encoder_norm")(x[:, 0])


class PositionTable(nn.Module):
    config: ViTConfig

    @nn.compact
    def __call__(self, x):
        shape = (1, self.config.num_tokens, x.shape[-1])
        table = self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        return resize_positions(table, round((x.shape[1] - 1) ** 0.5))


class ViT(nn.Module):
    """``ViT(config).apply({"params": base}, images, adaptation)`` gives the features.

    With ``train=True`` dropout in rank space and stochastic depth act, at rates that may be traced
    numbers, and `rngs={"dropout": key}` is needed. Stochastic depth rises linearly from 0 in the
    first block to `drop_path_rate` in the last.

    ``apply(..., mutable="intermediates")`` also returns every block's output,
    ``["intermediates"]["Transformer"]["encoderblock"]["tokens"][0]`` [l, b, n, d].
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b y x 3"],
        adaptation: Adaptation | None = None,
        train: bool = False,
        dropout_rate: float | Array = 0.0,
        drop_path_rate: float | Array = 0.0,
    ) -> Float[Array, "b d"]:
        """Class-token features after the final norm, float32 [b, d], of normalised images."""
        config = self.config
        p = config.patch_size
        with _precision(config):
            x = nn.Conv(
                config.width, (p, p), strides=(p, p), padding="VALID", name="embedding",
                dtype=config.dtype,
            )(images.astype(config.dtype))  # fmt: skip
            x = x.reshape(x.shape[0], -1, config.width)
            cls = self.param("cls", nn.initializers.zeros, (1, 1, config.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, config.width)), x], axis=1)
            encoder = Encoder(config, name="Transformer")
            return encoder(x, adaptation or Adaptation(), train, dropout_rate, drop_path_rate)


def _precision(config: ViTConfig) -> contextlib.AbstractContextManager:
    """Sets the precision of the matrix products traced within; 'default' leaves JAX's setting."""
    if config.precision == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(config.precision)


def features(
    model: ViT,
    base: dict,
    images: Array,
    adaptation: Adaptation | None = None,
    *,
    key: Array | None = None,
    dropout_rate: float | Array = 0.0,
    drop_path_rate: float | Array = 0.0,
) -> Float[Array, "b d"]:
    """Class-token features after the final norm, float32 [b, d]; images [b, y, x, 3], normalised.

    Images whose sides differ from ``model.config.image_size`` are fine if they are square and a
    multiple of the patch size: the position table is interpolated. A `key` switches dropout in
    rank space and stochastic depth on, for training; the rates may be traced.
    """
    rngs = None if key is None else {"dropout": key}
    x = model.apply(
        {"params": base}, images, adaptation, key is not None, dropout_rate, drop_path_rate,
        rngs=rngs,
    )  # fmt: skip
    return jnp.asarray(x)


def init_base(config: ViTConfig, key: Array) -> dict:
    """Random base parameters, float32, in the layout described above."""
    size = config.image_size
    model = ViT(config)
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, size, size, 3))))(key)["params"]
