"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from fact_jax.errors import UserError
from fact_jax.files.atomic import beside, unwritable


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raises UserError unless a folder can be made here: nothing is replaced.

    An empty folder may be there.
    """
    target = Path(path)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--out {target} is a file; a folder is written. Give another --out.")
    try:
        if target.is_dir() and any(target.iterdir()):
            raise UserError(f"--out {target} is a folder that is not empty. Give another --out.")
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = Path(beside(epath.Path(target)))
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise unwritable(target, error) from error


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> int:
    """Writes the files of a new folder, which appears whole or not at all.

    Returns:
      The number of bytes.

    Raises:
      UserError: it cannot be written, or something is there.
    """
    check_new_folder(path)
    target = Path(path)
    temporary = Path(beside(epath.Path(target)))
    try:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        temporary.replace(target)  # an empty folder may be there
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return sum(map(len, files.values()))
