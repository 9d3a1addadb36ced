"""What becomes of cells that run elsewhere, read from the work directory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from etils import epath

from fact_jax.cli import stopping
from fact_jax.cli.sweep import epochs_of
from fact_jax.errors import UserError
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.runner import Outcome
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import Store

DELAY = 10.0  # seconds that a shared folder may take to show a file


class Elsewhere(Protocol):
    """Is told how many cells are under way, and how many epochs those that ended have."""

    def elsewhere(self, running: int, epochs: int) -> None: ...


class Watch:
    """Looks for the results and failures of `cells`; ``left`` are those without."""

    def __init__(self, store: Store, progress: Elsewhere, cells: Sequence[Cell]):
        self._store, self._progress = store, progress
        self.left = {cell.name: cell for cell in cells}
        self._epochs = 0
        self._failed_before = {name: store.failed_at(name) for name in self.left}

    def look(self) -> Iterator[Outcome]:
        """What has come since the last look, in the plan's order."""
        results, failures = self._names("results"), self._names("failures")
        for name in list(self.left):
            outcome: Outcome | None = None
            if name in results:
                outcome = self._store.read_record(name, complete=True)
            elif name in failures and self._store.failed_at(name) != self._failed_before[name]:
                record = self._store.read_failure(name)
                outcome = Failure(name, UserError(str(record.get("message"))))
            if outcome is not None:
                self._epochs += epochs_of(self.left.pop(name))
                yield outcome
        # A killed run leaves its claim's file; the next one that works on the cell removes it.
        claimed = {path.name for path in _files(self._store.workdir / "claims")}
        self._progress.elsewhere(len(claimed & set(self.left)), self._epochs)

    def last_looks(self) -> Iterator[Outcome]:
        """When nothing runs any more: what shared folders show with some delay."""
        until = time.monotonic() + DELAY
        yield from self.look()
        while self.left and time.monotonic() < until:
            stopping.check_signals()
            time.sleep(1)
            yield from self.look()

    def _names(self, folder: str) -> set[str]:
        paths = _files(self._store.workdir / folder)
        return {path.name.removesuffix(".json") for path in paths if path.name.endswith(".json")}


def _files(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.exists() else []
