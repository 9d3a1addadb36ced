"""Convpass: bottlenecks with a 3 x 3 convolution over the patches, beside attention and MLP."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Bottleneck
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, Flag, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import uniform, xavier
from fact_jax.tuning.method import Base, Factors, Scale, checked

_PARTS = ("down", "up", "down_bias", "up_bias", "conv", "conv_bias")


@dataclasses.dataclass(frozen=True)
class Convpass:
    """``z + s up(act(conv(act(down(y)))))`` of a branch's normalised input y, QuickGELU.

    Each bypass has 2 d h + d + 2 h + 9 h^2 numbers, and `up` begins at zero.

    Attributes:
      width: h.
      scale: s.
      attention_only: whether the bypass of the MLP is left out: the paper's Convpass-attn.
      xavier: whether the convolution begins Xavier-uniform, instead of as the identity.
    """

    about: ClassVar[About] = About(
        "Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022",
        "JieShibo/PETL-ViT, convpass/vtab/convpass.py",
        "code",
    )
    width: int = setting(8, SIZE)
    scale: float = setting(1.0, SCALE)
    attention_only: bool = setting(False, Flag())
    xavier: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def _places(self) -> tuple[str, ...]:
        return ("beside_attention",) if self.attention_only else ("beside_attention", "beside_mlp")

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        depth, d, h = config.depth, config.width, self.width
        factors: Factors = {}
        for i, place in enumerate(self._places):
            key_down, key_conv = jax.random.split(jax.random.fold_in(key, i))
            identity = jnp.eye(h, dtype=jnp.float32)
            conv = jnp.zeros((depth, 3, 3, h, h), jnp.float32).at[:, 1, 1].set(identity)
            if self.xavier:  # fans of 9 h
                conv = uniform(key_conv, conv.shape, (6 / (18 * h)) ** 0.5)
            values = (
                xavier(key_down, (depth, d, h)),
                jnp.zeros((depth, h, d), jnp.float32),
                jnp.zeros((depth, h), jnp.float32),
                jnp.zeros((depth, d), jnp.float32),
                conv,
                jnp.zeros((depth, h), jnp.float32),
            )
            factors |= {f"{place}_{k}": v for k, v in zip(_PARTS, values, strict=True)}
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        bypasses = {}
        for place in self._places:
            parts: dict[str, Any] = {k: factors[f"{place}_{k}"] for k in _PARTS}
            parts |= {k: scale * parts[k] for k in ("up", "up_bias")}
            bypasses[place] = (Bottleneck(**parts, activation="quick_gelu", drop_path=True),)
        return Adaptation(bypasses=bypasses)
