"""Adapters: bottlenecks behind the branches of a block, before the residual is added.

Houlsby et al. put them behind attention and MLP, NOAH behind the MLP.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Bottleneck
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, OneOf, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked

_PLACES = {"noah": ("after_mlp",), "houlsby": ("after_attention", "after_mlp")}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """``z + up(act(down(z)))`` of a branch's output z: L (2 d h + h + d) numbers a place.

    Attributes:
      width: h.
      placement: 'noah': behind the MLP, QuickGELU, weights N(0, 0.02) and biases zero, so that it
        does not begin at zero (the constructor of NOAH's net ends by drawing every Linear anew).
        'houlsby': behind attention and MLP, GELU, weights N(0, 0.01) cut at two deviations, biases
        zero.
      scale: not used.
    """

    about: ClassVar[About] = About(
        "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; on ViTs "
        "Zhang, Zhou & Liu, Neural Prompt Search, 2022",
        "ZhangYuanhan-AI/NOAH, model/module/adapter_super.py",
        "code",
    )
    width: int = setting(8, SIZE)
    placement: str = setting("noah", OneOf(_PLACES))
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        depth, d, h = config.depth, config.width, self.width
        factors: Factors = {}
        down, up = (depth, d, h), (depth, h, d)
        shapes = {"down": down, "down_bias": (depth, h), "up": up, "up_bias": (depth, d)}
        for i, place in enumerate(_PLACES[self.placement]):
            keys = jax.random.split(jax.random.fold_in(key, i), len(shapes))
            for (name, shape), subkey in zip(shapes.items(), keys, strict=True):
                factors[f"{place}_{name}"] = self._initial(subkey, name, shape)
        return factors

    def _initial(self, key: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
        if name.endswith("bias"):
            return jnp.zeros(shape, jnp.float32)
        if self.placement == "noah":
            return 0.02 * jax.random.normal(key, shape, jnp.float32)
        return 0.01 * jax.random.truncated_normal(key, -2, 2, shape, dtype=jnp.float32)

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        act = "quick_gelu" if self.placement == "noah" else "gelu"
        names = ("down", "up", "down_bias", "up_bias")
        bypasses = {}
        for place in _PLACES[self.placement]:
            down, up, down_bias, up_bias = (factors[f"{place}_{name}"] for name in names)
            bypasses[place] = (Bottleneck(down, up, down_bias, up_bias, activation=act),)
        return Adaptation(bypasses=bypasses)
