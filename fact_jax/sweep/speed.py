"""The speed at which this machine trains, measured in a few seconds."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT, features, init_base
from fact_jax.sweep.cost import forward_flops

BLOCKS = 2
STEPS, SECONDS = 3, 1.0  # after which it ends
CPU_FLOPS, FLOPS = 3e10, 1e12  # of a step: large enough for the device's speed


class Speed(NamedTuple):
    """FLOP/s on one of the devices, their number and kind, and what was measured."""

    flops_per_second: float
    devices: int
    device: str
    how: str


def measure_speed(config: ViTConfig, batch_size: int) -> Speed:
    """Times the two passes of a training step, forward and backward to the pixels, through the
    network's first blocks.

    Most of the time is the compiler's. Raises RuntimeError where jax's device cannot be used, as
    when another process holds it.
    """
    small = config.replace(depth=min(config.depth, BLOCKS))
    flops, device = 2 * forward_flops(small), jax.devices()[0]
    wanted = (CPU_FLOPS if device.platform == "cpu" else FLOPS) // flops
    images = int(min(max(wanted, 1), batch_size))
    base = jax.eval_shape(lambda: init_base(small, jax.random.key(0)))
    pixels = np.full((images, small.image_size, small.image_size, 3), 0.01, np.float32)
    base = jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, 0.01, x.dtype)), base)

    def total(pixels: jax.Array, base: dict[str, Any]) -> jax.Array:
        return features(ViT(small), base, pixels).sum()

    step = jax.jit(jax.grad(total))
    jax.block_until_ready(step(pixels, base))  # compiles
    began, steps = time.perf_counter(), 0
    while not steps or (steps < STEPS and time.perf_counter() - began < SECONDS):
        jax.block_until_ready(step(pixels, base))
        steps += 1
    rate = steps * images * flops / (time.perf_counter() - began)
    how = f"{small.depth} blocks, {images} images at a time"
    return Speed(rate, jax.device_count(), device.device_kind, how)
