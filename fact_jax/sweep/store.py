"""The work directory of a sweep: what is written where, and never half.

    DIR/config.json                     the config of the last run
    DIR/results/<cell>.json             one per finished cell
    DIR/factors/<cell>.safetensors      factors and head, with metadata
    DIR/checkpoints/<group>/<stage>/    Orbax, one per epoch, the latest kept, and that until the
                                        results of the group's cells are there;
                                        of a search for an architecture, search.json
    DIR/architectures/<cell>.png        those that were found

DIR may be a bucket: everything but Orbax goes through etils.epath.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import jax
from etils import epath

from fact_jax.errors import UserError


def absolute(workdir: str | os.PathLike) -> epath.Path:
    """The work directory's path, absolute as Orbax wants it, or a bucket's."""
    path = os.fspath(workdir)
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    return epath.Path(path)


class Store:
    """Reads and writes one work directory. Raises UserError if it cannot be written.

    Of several processes (`jax.distributed`) only the first writes.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = absolute(workdir)
        try:
            for folder in ("results", "factors", "checkpoints"):
                (self.workdir / folder).mkdir(parents=True, exist_ok=True)
            self._write(self.workdir / "results" / ".probe", b"")
            (self.workdir / "results" / ".probe").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"The work directory {self.workdir} cannot be written ({error}). Give another one "
                "with --workdir, or make it writable."
            ) from error

    def _write(self, path: epath.Path, content: bytes) -> None:
        """Appears whole or not at all."""
        if jax.process_index() != 0:
            return
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
        temporary.write_bytes(content)
        temporary.replace(path)

    def write_json(self, path: epath.Path, value: Any) -> None:
        self._write(path, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, path: epath.Path) -> Any | None:
        """The file's content, or None if there is no such file."""
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path} is not valid JSON ({error}). Remove it to make it anew."
            ) from error

    def result_path(self, cell: str) -> epath.Path:
        return self.workdir / "results" / f"{cell}.json"

    def factors_path(self, cell: str) -> epath.Path:
        return self.workdir / "factors" / f"{cell}.safetensors"

    def checkpoint_dir(self, cell: str, stage: str) -> epath.Path:
        return self.workdir / "checkpoints" / cell / stage

    def write_factors(self, cell: str, content: bytes) -> None:
        self._write(self.factors_path(cell), content)
