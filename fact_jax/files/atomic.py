"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import uuid
from pathlib import Path

from etils import epath

from fact_jax.errors import UserError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, which appears whole or not at all.

    Raises:
      UserError: the file cannot be written; what was there before is as it was.
    """
    try:
        replace_file(epath.Path(path), content)
    except OSError as error:
        raise unwritable(path, error) from error


def replace_file(target: epath.Path, content: bytes) -> None:
    """Writes a file, which appears whole or not at all and stays after a power cut.

    Raises OSError if it cannot be written.
    """
    temporary = beside(target)
    try:
        temporary.write_bytes(content)
        _to_disk(temporary)
        temporary.replace(target)
        _to_disk(target.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _to_disk(path: epath.Path) -> None:
    """Forces a file or a folder through the caches of a local file system."""
    if "://" in os.fspath(path):
        return
    descriptor = os.open(Path(os.fspath(path)), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(descriptor)


def beside(target: epath.Path) -> epath.Path:
    """An unused hidden name in the folder of a file."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    return UserError(f"{os.fspath(path)} cannot be written ({error}). Give another path.")
