"""The work directory of a sweep: what is written where, and never half.

    DIR/config.json                     the config of the last run
    DIR/results/<cell>.json             one per finished cell
    DIR/results.csv                     the same in short, of all finished cells
    DIR/factors/<cell>.safetensors      factors and head, with metadata
    DIR/examples/<cell>.jpg             pictures of the test split, wrongly and rightly predicted
    DIR/failures/<cell>.json            why a cell is not finished; goes when it is
    DIR/checkpoints/<group>/<stage>/    Orbax, the latest, until the results of the group's cells
                                        are there;
                                        of a search for an architecture, search.json
    DIR/architectures/<cell>.png        those that were found
    DIR/claims/<cell>                   while a run works on the cell (claims.py)
    DIR/tensorboard/<cell>/<training>/  with config.tensorboard

DIR may be a bucket: everything but Orbax goes through etils.epath. What cannot be read is set aside
as <name>.unreadable-<digits>, and made anew.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath

from fact_jax.errors import UserError
from fact_jax.files.atomic import replace_file
from fact_jax.files.schema import check_type
from fact_jax.sweep.claims import Claims
from fact_jax.sweep.faults import no_space
from fact_jax.sweep.result import Result, StoredFailure, read_stored
from fact_jax.text import say

PROBE_BYTES = 1 << 16
_Content = TypeVar("_Content")


def absolute(workdir: str | os.PathLike[str]) -> epath.Path:
    """The work directory's path, absolute as Orbax wants it, or a bucket's."""
    path = os.fspath(workdir)
    if "://" not in path:
        path = os.path.abspath(os.path.expanduser(path))
    try:
        return epath.Path(path)
    except KeyError as error:
        raise UserError(
            f"--workdir {path}: nothing is known of {error}. Give a folder, or a bucket as "
            "gs://... or s3://..."
        ) from error


class Unwritable(UserError):
    """The work directory takes no more: no cell could be finished, so the sweep stops.

    At once: Orbax's threads wait for minutes for folders that could not be made.
    """

    at_once = True


class Store:
    """Reads and writes one work directory. Raises Unwritable if it cannot be written.

    Of several processes (`jax.distributed`) only the first writes. ``note(text)`` is told what was
    set aside. With ``create=False`` it is only looked at.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        note: Callable[[str], None] = say,
        create: bool = True,
    ):
        self.workdir, self.note = absolute(workdir), note
        self.claims, self._create = Claims(self.workdir / "claims"), create
        if not create:
            return
        try:
            for folder in ("results", "factors", "checkpoints"):
                (self.workdir / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unwritable(error) from error
        self.check()

    def check(self) -> None:
        """Raises Unwritable if nothing can be written now."""
        probe = self.workdir / "results" / f".probe-{uuid.uuid4().hex[:8]}"
        self.write(probe, b"\0" * PROBE_BYTES)
        probe.unlink(missing_ok=True)

    def unwritable(self, error: BaseException) -> Unwritable:
        what = "is full" if no_space(error) else "cannot be written or read"
        how = "free some space" if no_space(error) else "mend that"
        return Unwritable(
            f"The work directory {self.workdir} {what} ({error}). Nothing that is in it is lost: "
            f"{how} and run the same command again, or give another --workdir."
        )

    def write(self, path: epath.Path, content: bytes) -> None:
        """Appears whole or not at all, and stays after a power cut."""
        if jax.process_index() != 0:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        except OSError as error:
            raise self.unwritable(error) from error

    def write_json(self, path: epath.Path, value: Any) -> None:
        """Objects with one line a field, so that long curves stay readable."""
        text = json.dumps(value)
        if isinstance(value, dict):
            fields = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            text = "{\n" + ",\n".join(fields) + "\n}"
        self.write(path, (text + "\n").encode())

    def read_json(
        self, path: epath.Path, check: Callable[[dict[str, Any]], None] = lambda content: None
    ) -> dict[str, Any] | None:
        """The file's object; None if there is no such file. A file that cannot be read, or that
        `check` refuses by a ValueError, is set aside, and is None, too."""

        def read(path: epath.Path) -> dict[str, Any]:
            content: dict[str, Any] = read_stored(path)
            check(content)
            return content

        return self._read(path, read)

    def _read(self, path: epath.Path, read: Callable[[epath.Path], _Content]) -> _Content | None:
        """Reads a file with `read`; None if there is no such file, or if it is set aside."""
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self.set_aside(path, error)
            return None
        except OSError as error:
            raise self.unwritable(error) from error

    def read_record(self, cell: str, complete: bool = False) -> Result | None:
        """A finished cell's result; None if its file is not sound. With `complete`, it also has all
        fields that this version writes."""

        def read(path: epath.Path) -> Result:
            result = Result.from_json(path)
            if complete:
                result.check_complete()
            return result

        return self._read(self.result_path(cell), read)

    def read_failure(self, cell: str) -> dict[str, Any]:
        """The record of a cell's last failure; empty if there is none."""
        path = self.failure_path(cell)
        return self.read_json(path, lambda content: check_type(content, StoredFailure)) or {}

    def read_result(self, cell: str) -> Result | None:
        """A finished cell's result; None, too, if its file of factors is gone or cut short."""
        path = self.result_path(cell)
        result = self.read_record(cell)
        wanted = None if result is None else result.factor_file_bytes
        if wanted is None:
            return result
        factors = self.factors_path(cell)
        size = factors.stat().length if factors.exists() else None
        if size == wanted:
            return result
        fault = "is missing" if size is None else f"has {size:,} bytes"
        self.set_aside(path, ValueError(f"{factors} {fault}; expected {wanted:,} bytes"))
        return None

    def set_aside(self, path: epath.Path, error: Exception) -> None:
        """Moves what cannot be used out of the way, and says so."""
        reason = " ".join(str(error).split()).removeprefix(f"{path} ")
        reason = reason.removeprefix("is no record of a sweep: ")[:300]
        text = f"{path} cannot be read ({reason})"
        if not self._create:
            self.note(f"{text}.")
            return
        aside = path.parent / f"{path.name}.unreadable-{uuid.uuid4().hex[:8]}"
        if jax.process_index() == 0:
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
        self.note(f"{text}: moved to {aside.name}, made anew.")

    def result_path(self, cell: str) -> epath.Path:
        return self.workdir / "results" / f"{cell}.json"

    def factors_path(self, cell: str) -> epath.Path:
        return self.workdir / "factors" / f"{cell}.safetensors"

    def examples_path(self, cell: str) -> epath.Path:
        return self.workdir / "examples" / f"{cell}.jpg"

    def failure_path(self, cell: str) -> epath.Path:
        return self.workdir / "failures" / f"{cell}.json"

    def forget_failure(self, cell: str) -> None:
        if jax.process_index() == 0:
            self.failure_path(cell).unlink(missing_ok=True)

    def failed_at(self, cell: str) -> str | None:
        """The time of the cell's last failure; None if it did not fail."""
        return self.read_failure(cell).get("when")

    def checkpoint_dir(self, cell: str, stage: str) -> epath.Path:
        return self.workdir / "checkpoints" / cell / stage
