"""Adapter+: a bottleneck behind each block, with a scale for each channel."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Bottleneck
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class AdapterPlus:
    """``x + channels * up(GELU(down(x)))`` of a block's output x: L (2 d h + h + 2 d) numbers.

    The bottleneck has a stochastic depth of its own, at the rate of the network's.

    Attributes:
      width: h.
      scale: not used.
    """

    about: ClassVar[About] = About(
        "Steitz & Roth, Adapters Strike Back, CVPR 2024",
        "visinf/adapter_plus, adapter_plus/vit_adapter.py, conf/adapter/adapter_plus.yaml",
        "code",
        (
            "The bottleneck's stochastic depth rises from block to block as the network's; the "
            "source has the same rate of 0.1 in all blocks.",
            "The schedule is FacT's; the source's begins at a hundredth and ends at a thousandth "
            "of the rate.",
        ),
    )
    width: int = setting(8, SIZE)
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """Weights N(0, 0.01) cut at two deviations, biases zero, channels' scales one."""
        depth, d, h = config.depth, config.width, self.width
        keys = jax.random.split(key)
        return {
            "down": 0.01 * jax.random.truncated_normal(keys[0], -2, 2, (depth, d, h), jnp.float32),
            "down_bias": jnp.zeros((depth, h), jnp.float32),
            "up": 0.01 * jax.random.truncated_normal(keys[1], -2, 2, (depth, h, d), jnp.float32),
            "up_bias": jnp.zeros((depth, d), jnp.float32),
            "channel_scale": jnp.ones((depth, d), jnp.float32),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        channels = factors["channel_scale"]
        bottleneck = Bottleneck(
            factors["down"],
            factors["up"] * channels[:, None],
            factors["down_bias"],
            factors["up_bias"] * channels,
            activation="gelu",
            drop_path=True,
        )
        return Adaptation(bypasses={"after_block": (bottleneck,)})
