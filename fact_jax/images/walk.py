"""Picture files below folders: each folder and each file once, whatever links lead to it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from etils import epath

from fact_jax.errors import UserError
from fact_jax.images import decoder
from fact_jax.text import printable_line

P = TypeVar("P", Path, epath.Path)


class Walk:
    """Finds pictures by their suffixes in the order of their names; hidden ones are left out.

    Links are followed, but no folder is walked twice (by device and inode), so that a link to a
    parent ends. A link to a file that is found elsewhere, too, does not count. Hard links do.

    Attributes:
      left_out: paths that look like pictures or folders but were not taken, and why.
    """

    def __init__(self, entered: Iterable[Path | epath.Path] = ()):
        """`entered`: folders that must not be walked, even where links lead to them."""
        self._folders = {_identity(folder) for folder in entered}
        self._suffixes = decoder.suffixes()
        self.left_out: dict[str, str] = {}

    def pictures(self, folders: Sequence[P]) -> list[list[P]]:
        """The pictures of each folder and those below it.

        A link in one of the folders does not lead into another of them.

        Raises:
          UserError: a folder cannot be read.
        """
        first = []
        for folder in folders:
            identity = _identity(folder)
            first.append(identity not in self._folders)
            self._folders.add(identity)
            if not first[-1]:
                self._leave_out(folder, "a link to a folder that counts already")
        every = [
            list(self._below(folder)) if is_first else []
            for folder, is_first in zip(folders, first, strict=True)
        ]
        files = {_identity(path) for paths in every for path in paths if not _is_link(path)}
        return [[path for path in paths if self._counts(path, files)] for paths in every]

    def _counts(self, path: P, files: set[object]) -> bool:
        """Whether this is no link to one of the files; it is one of them from then on."""
        if not _is_link(path):
            return True
        identity = _identity(path)
        if identity in files:
            self._leave_out(path, "a link to a picture that counts already")
            return False
        files.add(identity)
        return True

    def _below(self, folder: P) -> Iterator[P]:
        stack = [iter(_listed(folder))]
        while stack:
            path = next(stack[-1], None)
            if path is None:
                stack.pop()
            elif path.name.startswith("."):
                continue
            elif path.is_dir():
                identity = _identity(path)
                if identity in self._folders:
                    self._leave_out(path, "a link to a folder that counts already")
                    continue
                self._folders.add(identity)
                stack.append(iter(_listed(path)))
            elif path.suffix.lower() in self._suffixes and self._is_file(path):
                yield path

    def _is_file(self, path: P) -> bool:
        try:
            kind = decoder.special_kind(path)
        except OSError:  # a link to nothing: whoever reads it says so
            return True
        if kind:
            self._leave_out(path, kind)
        return not kind

    def _leave_out(self, path: Path | epath.Path, why: str) -> None:
        self.left_out[str(path)] = why

    def note(self) -> str:
        """A sentence on the paths that were left out; '' if none was."""
        names = [f"{path} ({why})" for path, why in list(self.left_out.items())[:10]]
        more = f" and {len(self.left_out) - 10} more" if len(self.left_out) > 10 else ""
        return printable_line(f"left out: {', '.join(names)}{more}") if names else ""


def _listed(folder: P) -> list[P]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"The folder {printable_line(str(folder))} cannot be read ({error.strerror}). Allow "
            "it, or move the folder away."
        ) from error


def _is_link(path: Path | epath.Path) -> bool:
    return os.path.islink(path)


def _identity(path: Path | epath.Path) -> object:
    """The same for all paths of one file or folder; the path where there is nothing to ask."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing, or a bucket
        return os.fspath(path)
    return status.st_dev, status.st_ino
