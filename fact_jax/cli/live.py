"""Progress of a running sweep: bars in the terminal."""

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

import jax
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fact_jax.cli import stopping
from fact_jax.cli.terminal import Console
from fact_jax.sweep.runs import Run


def _patient(refresh: Callable[[], None]) -> Callable[[], None]:
    """Lets rich's thread survive the import of TFDS.

    It imports modules whenever it draws. TFDS meanwhile replaces Python's import by one that
    refuses relative names (etils' lazy imports).
    """

    def patient() -> None:
        with contextlib.suppress(ValueError, ImportError):  # a tenth of a second later it is drawn
            refresh()

    return patient


class Compiling:
    """Measures how long XLA has been compiling a program, by jax's events.

    ``done(seconds)`` is called when a program is compiled, or read from the cache.
    """

    EVENT = "/jax/core/compile/backend_compile_duration"  # once as it begins, once as it ends

    def __init__(self, done: Callable[[float], None]):
        self._done = done
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds since it began; 0 while nothing is compiled."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def __enter__(self) -> Self:
        jax.monitoring.register_scalar_listener(self._begin)
        jax.monitoring.register_event_duration_secs_listener(self._end)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_scalar_listener(self._begin)
        jax.monitoring.unregister_event_duration_listener(self._end)

    def _begin(self, event: str, value: float, **more: Any) -> None:
        if event == self.EVENT:
            self._since = time.monotonic()

    def _end(self, event: str, duration_secs: float, **more: Any) -> None:
        if event == self.EVENT:
            self._since = None
            self._done(duration_secs)


class _RunText(TextColumn):
    """The text of a bar: its runs, and whether their program is still being compiled."""

    def __init__(self, compiling: Compiling):
        super().__init__("{task.description}", markup=False)
        self._compiling = compiling

    def render(self, task: Task) -> Text:
        seconds = self._compiling.seconds if task.fields.get("compiles") else 0.0
        return super().render(task).append(f", compiling ({seconds:.0f} s)" if seconds > 1 else "")


class Bars:
    """Two bars: epochs of all runs with the time left, and epochs of the runs under way.

    Where the output is no terminal but a log, it is lines: one at the start of each training, one
    whenever an epoch ends a minute or more after the last line, and one for a long compilation.
    """

    LOG_EVERY = 60.0  # seconds
    LONG = 10.0  # seconds of compiling

    def __init__(self, console: Console, note: Callable[[str], None] | None = None):
        self._note = note or console.print
        self.compiling = Compiling(self._compiled)
        columns = (
            _RunText(self.compiling),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns, console=console, transient=True, speed_estimate_period=600
        )
        live = self.progress.live
        live.refresh = _patient(live.refresh)  # type: ignore[method-assign]
        self._console = console
        self._all = self.progress.add_task("sweep", total=None)
        self._run = self.progress.add_task("", total=1, compiles=True)
        self._epochs = self._before = 0
        self._running = 1
        self._name, self._logged = "", time.monotonic()
        self._cells = {"done": 0, "failed": 0, "running": 0, "to do": 0}

    def __enter__(self) -> Self:
        self.progress.start()
        self.compiling.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.compiling.__exit__()
        self.progress.stop()

    def _log(self, text: str) -> None:
        """A line of a log; nothing in a terminal, which has the bars."""
        if not self._console.is_terminal:
            self._logged = time.monotonic()
            self._console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True)

    def _compiled(self, seconds: float) -> None:
        if seconds > self.LONG:
            self._log(f"a program was compiled in {seconds:.0f} s")

    def expect(self, epochs: int, cells: int, done: int) -> None:
        """Starts the bar of the cells still to run; finished ones would shorten the time left."""
        self._cells.update({"done": done, "to do": cells})
        self.progress.update(self._all, total=epochs)
        self._describe()

    def finished(self, failed: bool) -> None:
        """Counts a cell whose result, or failure, is there."""
        self._cells["failed" if failed else "done"] += 1
        self._cells["to do"] -= 1
        self._cells["running"] = min(self._cells["running"], self._cells["to do"])
        self._describe()

    def _describe(self) -> None:
        cells = {**self._cells, "to do": self._cells["to do"] - self._cells["running"]}
        text = ", ".join(f"{number} {what}" for what, number in cells.items() if number)
        self.progress.update(self._all, description=f"cells: {text or 'none'}")

    def start(self, runs: list[Run], epochs: int) -> None:
        stopping.check_signals()
        names = [run.cell.name for run in runs]
        self._epochs += self._before
        self._running, self._before = len(names), len(names) * epochs
        self._cells["running"] = min(len(names), self._cells["to do"])
        self._describe()
        self.progress.update(self._all, completed=self._epochs)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._name = f"{names[0]}{more}, {runs[0].stage}"
        self.progress.reset(self._run, total=epochs, description=self._name)
        self._log(f"{self._name}: {epochs} epochs")

    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None:
        stopping.check_signals()
        self.progress.update(self._run, completed=done)
        self.progress.update(self._all, completed=self._epochs + done * self._running)
        if time.monotonic() - self._logged >= self.LOG_EVERY:
            self._log_epoch(done, losses)

    def _log_epoch(self, done: int, losses: list[float]) -> None:
        tasks = {task.id: task for task in self.progress.tasks}
        run, whole = tasks[self._run], tasks[self._all]
        text = f"{self._name}: epoch {done} of {run.total:.0f}"
        if losses:  # a generation of a search has none
            text += f", loss {losses[0]:.3g}"
        if whole.total:
            text += f"; {whole.completed / whole.total:.0%} of the sweep"
        if whole.time_remaining is not None:
            text += f", {timedelta(seconds=int(whole.time_remaining))} left"
        self._log(text)

    def elsewhere(self, running: int, epochs: int) -> None:
        """Shows other processes' progress: cells under way, and epochs of the cells that ended."""
        self._cells["running"] = min(running, self._cells["to do"])
        self.progress.update(self._all, completed=epochs)
        self.progress.update(self._run, visible=False)
        self._describe()

    def note(self, text: str) -> None:
        self._note(text)

    def waiting(self) -> None:
        stopping.check_signals()
        self._cells["running"] = 0
        self._describe()
        self.progress.reset(self._run, total=None, description="waiting for another run's cells")
