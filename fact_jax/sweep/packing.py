"""Packing of the runs of a sweep into groups that train together."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from fact_jax.backbone.config import ViTConfig

# More trials on one device pay only while one alone leaves it idle (docs/performance.md).
MOST_PER_DEVICE = 4
_MEMORY_SHARE = 0.8  # of a device's, since step_bytes is an estimate


def step_bytes(config: ViTConfig, images: int, num_prompts: int = 0) -> int:
    """Estimated memory of a training step of one trial on this many images, weights left out.

    What the backward pass keeps of every block by `config.remat` (backbone/vit.py), and what one
    block needs at a time. For ViT-B/16 within a tenth of what the TPU compiler allocates without
    rematerialisation, and a third too much with 'block'.
    """
    n, d, m = config.num_tokens + num_prompts, config.width, config.mlp_dim
    scores = config.num_heads * n * (config.attention == "xla" or num_prompts > 0)
    hidden = m * (2 if config.mlp == "gated" else 1)
    saved = {"none": 6 * d + hidden + scores, "attention": 6 * d + hidden, "block": d}[config.remat]
    at_once = 14 * d + 7 * m + 5 * scores  # fitted to the TPU compiler's figures, docs/tpu.md
    return images * n * (config.depth * saved + at_once) * jnp.dtype(config.dtype).itemsize


def device_bytes(device: jax.Device) -> int:
    """Memory of a device; of the machine, where its CPU is the device."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def most_per_device(
    config: ViTConfig,
    batch_size: int,
    *,
    state_bytes: int,
    base_bytes: int,
    device: jax.Device,
    num_prompts: int = 0,
) -> int:
    """Trials that one device shall train at once, at least 1: on a CPU no more than that."""
    if device.platform == "cpu":
        return 1
    free = _MEMORY_SHARE * device_bytes(device) - base_bytes
    fit = int(free // (step_bytes(config, batch_size, num_prompts) + state_bytes))
    return max(1, min(fit, MOST_PER_DEVICE))


def group_size(stages: list[int], num_devices: int, batch_size: int, per_device: int) -> int:
    """The number of trials to stack, for stages of so many runs each.

    A group costs time in proportion to the trials on a device; split over devices, a batch costs a
    quarter more. Of all sizes within a tenth of the least time for the whole sweep, the one with
    the most trials on a device, then with the fewest splits, is taken. Every group has this size
    (the last is padded), so that one program serves the sweep.
    """
    costs = {}
    for trials in range(1, num_devices + 1):
        if num_devices % trials:
            continue
        data = math.gcd(num_devices // trials, batch_size)
        for k in range(1, per_device + 1 if trials == num_devices else 2):
            groups = sum(math.ceil(runs / (trials * k)) for runs in stages)
            costs[k, trials] = groups * k / data * (1.25 if data > 1 else 1.0)
    best = min(costs.values())
    k, trials = max(choice for choice, cost in costs.items() if cost <= 1.1 * best)
    return k * trials


def free_programs(most: float = 0.7) -> None:
    """Forgets the compiled programs once they fill this share of the mappings that Linux allows.

    A process may have 65,530 (vm.max_map_count), and a training program of XLA for the CPU takes
    about a thousand: with none left, LLVM ends the process. What is needed again comes from the
    compilation cache on disk.
    """
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if not (maps.exists() and limit.exists()):
        return
    if maps.read_bytes().count(b"\n") > most * int(limit.read_text()):
        jax.clear_caches()
