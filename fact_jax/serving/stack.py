"""Trees of one structure, stacked on the devices, where single rows are written and read.

Rows lie in float32, bfloat16 or 8 bits, and are read as float32. The three programs here (writing,
reading, growing) are tiny, and nothing else depends on the number of rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fact_jax.algebra.quantise import Quantised, dequantise, group_axes, quantise
from fact_jax.training.mesh import batch_sharded, replicated

DTYPES = ("float32", "bfloat16", "int8")
"""Types in which a bank may store factors and heads."""

Tree = Any  # of arrays
_PARTS = (64, 8, 1)  # rows that one call writes


class Stack:
    """Rows on all devices of a mesh, each in a place of its own.

    Not thread-safe: the caller holds a lock. A row that was read stays as it was, whatever is
    written afterwards.

    Args:
      row: a row, a tree of float32 arrays; all others have its structure and shapes.
      capacity: places at the beginning.
      mesh: the devices; rows that are read are split over its axis `data`.
      dtype: of DTYPES. Vectors and single numbers stay float32 in all of them.
    """

    def __init__(self, row: Tree, capacity: int, mesh: Mesh, dtype: str):
        self._mesh, self.capacity, self._dtype = mesh, capacity, dtype
        self._free = list(range(capacity))[::-1]
        self._arrays = jax.tree.map(
            lambda x: jnp.zeros((capacity, *x.shape), x.dtype, device=replicated(mesh)),
            jax.eval_shape(functools.partial(_stored, dtype=dtype), row),
        )

    @property
    def used(self) -> int:
        """Places that are taken."""
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes on one device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._arrays))

    def reserve(self, count: int) -> None:
        """Makes room for this many more rows: the capacity doubles, or more if it must."""
        if count <= len(self._free):
            return
        capacity = max(2 * self.capacity, self.used + count)
        self._arrays = _grown(self._arrays, capacity, replicated(self._mesh))
        self._free = [*range(self.capacity, capacity)][::-1] + self._free
        self.capacity = capacity

    def write(self, rows: Sequence[Tree]) -> list[int]:
        """Writes rows into free places, in time that depends on these rows alone.

        Returns:
          Their places.
        """
        self.reserve(len(rows))
        places = [self._free.pop() for _ in rows]
        start = 0
        while start < len(rows):
            stop = start + next(size for size in _PARTS if size <= len(rows) - start)
            part = jax.tree.map(lambda *leaves: np.stack(leaves), *rows[start:stop])
            where = np.array(places[start:stop], np.int32)
            self._arrays = _written(self._arrays, part, where, self._dtype, replicated(self._mesh))
            start = stop
        return places

    def release(self, place: int) -> None:
        """Gives a place back; its row is overwritten some day."""
        self._free.append(place)

    def read(self, places: np.ndarray) -> Tree:
        """The rows of places int32 [b], float32 [b, ...]; a place may repeat."""
        return _rows(self._arrays, places, batch_sharded(self._mesh))


# Module-level functions, so that stacks of equal rows share their programs. `arrays` is given away:
# without that, writing a row would copy all others.
@functools.partial(jax.jit, static_argnames=("dtype", "sharding"), donate_argnames="arrays")
def _written(
    arrays: Tree, rows: Tree, places: jax.Array, dtype: str, sharding: NamedSharding
) -> Tree:
    stored = jax.vmap(functools.partial(_stored, dtype=dtype))(rows)
    written = jax.tree.map(
        lambda array, row: array.at[places].set(row, mode="promise_in_bounds"), arrays, stored
    )
    return jax.lax.with_sharding_constraint(written, sharding)


@functools.partial(jax.jit, static_argnames="sharding")
def _rows(arrays: Tree, places: jax.Array, sharding: NamedSharding) -> Tree:
    rows = jax.tree.map(lambda array: array.at[places].get(mode="promise_in_bounds"), arrays)
    rows = jax.tree.map(jax.vmap(_read), rows, is_leaf=lambda x: isinstance(x, Quantised))
    return jax.lax.with_sharding_constraint(rows, sharding)


def _stored(row: Tree, dtype: str) -> Tree:
    """A row as it is stored."""

    def one(keys: Any, x: jax.Array) -> jax.Array | Quantised:
        if x.ndim < 2 or not x.size or dtype == "float32":
            return x
        if dtype == "bfloat16":
            return _bits(x.astype(jnp.bfloat16))
        name = "/".join(key.key for key in keys)
        quantised: Quantised = quantise(x, group_axes(name, x.shape), 8)
        return quantised._replace(steps=_bits(quantised.steps))

    return jax.tree_util.tree_map_with_path(one, row)


def _bits(x: jax.Array) -> jax.Array:
    """The bits of numbers of 16 bits: to write a row, XLA's CPU code would make all float32."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _read(stored: jax.Array | Quantised) -> jax.Array:
    """An array of a row as float32."""
    if isinstance(stored, Quantised):
        steps = jax.lax.bitcast_convert_type(stored.steps, jnp.float16)
        return jnp.asarray(dequantise(stored._replace(steps=steps), 8))
    if stored.dtype == jnp.uint16:
        stored = jax.lax.bitcast_convert_type(stored, jnp.bfloat16)
    return stored.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("capacity", "sharding"))
def _grown(arrays: Tree, capacity: int, sharding: NamedSharding) -> Tree:
    def one(array: jax.Array) -> jax.Array:
        return jnp.zeros((capacity, *array.shape[1:]), array.dtype).at[: len(array)].set(array)

    return jax.lax.with_sharding_constraint(jax.tree.map(one, arrays), sharding)
