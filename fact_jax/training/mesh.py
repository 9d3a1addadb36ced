"""The device mesh, with axes `trial` (independent runs) and `data` (images of one batch), and
copies of arrays to it and back.

Everything also works if the devices belong to several processes (`jax.distributed`): every process
then holds the same host arrays and calls the same functions.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, num_trials: int = 1
) -> Mesh:
    """A mesh for stacks of `num_trials` trials, by default of one.

    The axis `trial` takes as many of the devices as divide `num_trials` evenly, because trials do
    not communicate. The rest split the batches, as many as divide `batch_size` evenly.
    """
    devices = jax.devices() if devices is None else list(devices)
    trials = math.gcd(len(devices), num_trials)
    data = math.gcd(len(devices) // trials, batch_size)
    return jax.make_mesh(
        (trials, data),
        ("trial", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: trials * data],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis, of images, cut over the mesh's axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def trial_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis, of trials, cut over the mesh's axis `trial`."""
    return NamedSharding(mesh, PartitionSpec("trial"))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts a tree on the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree)


def stack(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Stacks trees of the same structure, one a trial; the leaves get a leading trial axis."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)
    return put(stacked, trial_sharded(mesh))


def agree(tree: Any) -> Any:
    """Process 0's numbers on every process, for a decision that must be the same on all."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def agree_on_any(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def fetch(tree: Any) -> Any:
    """Host copies of a tree, the same on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
