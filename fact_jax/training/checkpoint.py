"""The checkpoint of a training: its latest arrays, in a folder of Orbax, with a checksum."""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fact_jax.training.mesh import fetch, put, replicated


class UnreadableCheckpoint(Exception):
    """Raised where a run's checkpoint `directory` cannot be read."""

    def __init__(self, directory: epath.Path, error: Exception):
        super().__init__(str(error))
        self.directory = directory


class Checkpoint:
    """The latest checkpoint in a directory: trees of arrays by name, on a mesh."""

    def __init__(self, checkpointer: Any, directory: epath.Path, mesh: Mesh):
        self._checkpointer, self._directory, self._mesh = checkpointer, directory, mesh

    @classmethod
    @contextlib.contextmanager
    def opened(cls, directory: epath.Path, mesh: Mesh) -> Iterator["Checkpoint"]:
        """A checkpoint whose writing has ended when the context ends."""
        from orbax.checkpoint import v1 as ocp

        latest_only = ocp.training.preservation_policies.LatestN(1)
        with ocp.training.Checkpointer(
            directory, preservation_policy=latest_only, cleanup_tmp_directories=True
        ) as checkpointer:
            yield cls(checkpointer, directory, mesh)

    @property
    def step(self) -> int:
        """The step that is saved; -1 for none."""
        latest = self._checkpointer.latest
        return -1 if latest is None else int(latest.step)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Saves arrays that lie on the mesh."""
        checksum = put(_checksum(content), replicated(self._mesh))
        self._checkpointer.save(step, {**content, "checksum": checksum})

    def load(self, like: dict[str, Any]) -> dict[str, Any]:
        """The saved arrays, which have the shapes, types and places of `like`.

        Raises UnreadableCheckpoint if they cannot be read or are not what was saved.
        """
        checksum = put(np.zeros(1, np.uint32), replicated(self._mesh))
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            {**like, "checksum": checksum},
        )
        try:
            stored: dict[str, Any] = self._checkpointer.load(self.step, abstract)
        except Exception as error:
            raise UnreadableCheckpoint(self._directory, error) from error
        if not np.array_equal(fetch(stored.pop("checksum")), _checksum(stored)):
            reason = "its numbers are not those that were saved: the checksum differs"
            raise UnreadableCheckpoint(self._directory, ValueError(reason))
        return stored


def _checksum(tree: Any) -> np.ndarray:
    """CRC-32 of the numbers of a tree, uint32 [1]. Orbax does not notice a flipped bit."""
    crc = 0
    for leaf in jax.tree.leaves(fetch(tree)):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return np.array([crc], np.uint32)
