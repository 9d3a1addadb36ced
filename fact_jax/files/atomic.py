"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid

from etils import epath

from fact_jax.errors import UserError


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, which appears whole or not at all.

    Raises:
      UserError: the file cannot be written; what was there before is as it was.
    """
    target = epath.Path(path)
    temporary = beside(target)
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def beside(target: epath.Path) -> epath.Path:
    """A hidden name, not used yet, in the folder of a file to be."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"


def unwritable(path: str | os.PathLike, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    return UserError(f"{os.fspath(path)} cannot be written ({error}). Give another path.")
