"""The device mesh: axes `trial` (independent runs) and `data` (images of one batch)."""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(batch_size: int, devices=None) -> Mesh:
    """A mesh of one trial whose batch is split over as many devices as divide it evenly."""
    devices = jax.devices() if devices is None else list(devices)
    count = math.gcd(len(devices), batch_size)
    return jax.make_mesh(
        (1, count),
        ("trial", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[:count],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))
