"""Kinds of faults: whether an exception says that a disk is full or that memory ran out."""

import errno
from collections.abc import Iterator

import jax

_FULL = (errno.ENOSPC, errno.EDQUOT)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def no_space(error: BaseException) -> bool:
    """A disk or a quota is full. Orbax tells of it in words only."""
    return any(
        (isinstance(e, OSError) and e.errno in _FULL)
        or "No space left on device" in str(e)
        or "Disk quota exceeded" in str(e)
        for e in _chain(error)
    )


def out_of_memory(error: BaseException) -> bool:
    """The device's memory, or the machine's, did not suffice."""
    return not no_space(error) and any(
        isinstance(e, MemoryError)
        or (
            isinstance(e, jax.errors.JaxRuntimeError)
            and ("RESOURCE_EXHAUSTED" in str(e) or "out of memory" in str(e).lower())
        )
        for e in _chain(error)
    )
