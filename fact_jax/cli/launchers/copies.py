"""Copies of a sweep in other processes, and the command that follows them.

Every copy runs the same sweep in the same work directory, where claims divide the cells
(fact_jax/sweep/claims.py). So a launcher only starts copies; the rest is read from the store.
"""

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fact_jax.cli import process, stopping
from fact_jax.cli.live import Bars
from fact_jax.cli.local import Sweep
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.sweep.cost import epochs_of
from fact_jax.sweep.plan import OF_FILES, Cell
from fact_jax.sweep.record import stored_result
from fact_jax.sweep.result import Result
from fact_jax.sweep.runner import Outcome
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import Store, absolute

DELAY = 10.0  # seconds that a shared folder may take to show a file


class Copy(NamedTuple):
    """The sweep as another process runs it, and runs it again if it was lost.

    Attributes:
      cells: the cells to run, and when each failed last before the launch. Cells that failed
        since then are not tried again.
      command: runs one cell again, followed by its name.
    """

    sweep_config: ConfigDict
    workdir: str
    cells: dict[str, str | None]
    command: str

    def run(self, console: Console, note: Callable[[str], None] | None = None) -> None:
        """Runs cells until none is left. Raises UserError, with this host's name."""
        process.prepare_process()
        try:
            if not (absolute(self.workdir) / "config.json").exists():  # the command has written it
                raise UserError(
                    f"{self.workdir} is not the folder that the command writes to: --workdir must "
                    "be a bucket, or a folder that all nodes share."
                )
            store = Store(self.workdir)
            left = [name for name, failed in self.cells.items() if store.failed_at(name) == failed]
            if left:
                sweep = Sweep(
                    self.sweep_config,
                    self.workdir,
                    console,
                    rerun=self._rerun,
                    note=note,
                    failed_before=self.cells,
                )
                sweep.run([], left)
        except UserError as error:
            raise UserError(f"On {socket.gethostname()}: {error}") from error

    def _rerun(self, cell: str) -> str:
        return self.command + cell


class Follower:
    """Runs cells in copies elsewhere, and reads their outcomes from the work directory.

    ``launch(options, copy, bars)`` is a context in which copies work. Its value has two methods:
    ``running()`` waits for some seconds and says whether copies still work, and ``ends()`` says in
    sentences how copies ended.
    """

    def __init__(
        self,
        launch: Callable[..., Any],
        options: ConfigDict,
        sweep_config: ConfigDict,
        store: Store,
        bars: Bars,
    ):
        self._launch, self._options, self._sweep_config = launch, options, sweep_config
        self._store, self._bars = store, bars
        self._left: dict[str, Cell] = {}  # the cells that have neither a result nor a new failure
        self._failed_before: dict[str, str | None] = {}
        self._epochs = 0  # of the cells that ended

    def finished(self, cell: Cell) -> Result | None:
        """The stored result. The copies check that it was made with the same weights."""
        record = self._store.read_record(cell.name)
        stored = record.settings if record else {}
        of_files = {name: stored[name] for name in OF_FILES if name in stored}
        return stored_result(self._store, cell, {**cell.as_stored, **of_files})

    def run(
        self, cells: list[Cell], results: dict[str, Result], only: Sequence[str]
    ) -> Iterator[Outcome]:
        """Yields each unfinished cell's outcome as soon as it is in the work directory."""
        todo = [c for c in cells if c.name not in results and (not only or c.name in only)]
        if not todo:
            return
        self._left = {cell.name: cell for cell in todo}
        self._failed_before = {name: self._store.failed_at(name) for name in self._left}
        command = process.rerun_command("CELL").removesuffix("CELL")
        copy = Copy(self._sweep_config, str(self._store.workdir), self._failed_before, command)
        with self._launch(self._options, copy, self._bars) as copies:
            if not self._options.get("wait", True):
                return
            until = math.inf
            while self._left and time.monotonic() < until:
                if not copies.running():
                    until = min(until, time.monotonic() + DELAY)
                stopping.check_signals()
                yield from self._look()
        if self._left:
            raise UserError(
                f"{len(self._left)} cells are not finished, and nothing works on them any more. "
                f"{copies.ends()} The same command goes on."
            )

    def _look(self) -> Iterator[Outcome]:
        """Yields the outcomes since the last look, in the plan's order."""
        results, failures = self._names("results"), self._names("failures")
        for name in list(self._left):
            outcome: Outcome | None = None
            if f"{name}.json" in results:
                outcome = self._store.read_record(name, complete=True)
            elif f"{name}.json" in failures:
                record = self._store.read_failure(name)
                if record and record.get("when") != self._failed_before[name]:
                    outcome = Failure(name, UserError(str(record.get("message"))))
            if outcome is not None:
                self._epochs += epochs_of(self._left.pop(name))
                yield outcome
        # A killed run leaves its claim's file; the next one that works on the cell removes it.
        self._bars.elsewhere(len(self._names("claims") & self._left.keys()), self._epochs)

    def _names(self, folder: str) -> set[str]:
        path = self._store.workdir / folder
        return {file.name for file in path.iterdir()} if path.exists() else set()
