"""The sweep itself: its cells, run in this process or by a launcher, with a line for each."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import jax
from ml_collections import ConfigDict

from fact_jax.cli.live import Bars
from fact_jax.cli.loggers import LOGGERS, Curves
from fact_jax.cli.process import rerun_command
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.report.architecture import architecture_text
from fact_jax.report.records import csv_text, read_results
from fact_jax.report.terminal import parameter_table, print_table
from fact_jax.sweep.cost import epochs_of
from fact_jax.sweep.feed import Feed
from fact_jax.sweep.plan import Cell, chosen, make_plan, schedule_warning
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runner import Outcome, Runner
from fact_jax.sweep.runs import Failure, Progress
from fact_jax.sweep.settings import GRID
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer
from fact_jax.text import count_of
from fact_jax.tuning import count_parameters
from fact_jax.tuning.registry import describe


class Launched(Protocol):
    """Runs cells elsewhere, as `fact_jax.sweep.runner.Runner` does here."""

    def finished(self, cell: Cell) -> Result | None: ...
    def run(
        self, cells: list[Cell], results: dict[str, Result], only: list[str]
    ) -> Iterator[Outcome]: ...


Launch = Callable[[ConfigDict, Store, Bars], Launched]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep in a work directory; its cells run in this process, or by a launcher.

    Attributes:
      console: where lines and bars go.
      launch: makes the runner of a launcher. By default cells run in this process.
      rerun: gives the command that runs a cell again, for the record of a failure.
      note: takes notes in the place of the console.
      failed_before: when cells failed last; those that failed since then are not tried again.
      brief: print neither the numbers that methods train nor a line for each cell.
    """

    sweep_config: ConfigDict
    workdir: str
    console: Console
    launch: Launch | None = None
    rerun: Callable[[str], str] = rerun_command
    note: Callable[[str], None] | None = None
    failed_before: Mapping[str, str | None] | None = None
    brief: bool = False

    def run(
        self, failures: list[Failure] | None = None, only: list[str] | None = None
    ) -> list[Result]:
        """Runs the cells without a result and prints a line for each cell.

        Args:
          failures: is given the cells that fail. Without it they are raised at the end.
          only: names of the cells to run; by default all.

        Returns:
          All results of the sweep, also those of earlier runs.
        """
        failed: list[Failure] = [] if failures is None else failures
        cells, only = make_plan(self.sweep_config), only or []
        numbers = {cell.name: f"[{i}/{len(cells)}]" for i, cell in enumerate(cells, 1)}
        wanted = chosen(cells, only)
        if cold := schedule_warning(self.sweep_config, cells):
            self.console.print(cold)
        bars = Bars(self.console, self.note)
        store = Store(self.workdir, bars.note)
        with self._runner(store, bars, wanted) as runner:
            results = {c.name: r for c in cells if (r := runner.finished(c)) is not None}
            todo = [c for c in wanted if c.name not in results]
            if isinstance(runner, Runner):  # a launcher has its copies do both, where data are
                _check_data(runner, todo, results)
                if not self.brief:
                    _print_parameters(self.console, runner, cells)
            bars.expect(sum(epochs_of(cell) for cell in todo), len(todo), len(results))
            store.write_json(store.workdir / "config.json", self.sweep_config.to_dict())
            for name, result in results.items():
                self._print_result(numbers[name], result, "finished before")
            for outcome in runner.run(cells, results, only):
                bars.finished(failed=isinstance(outcome, Failure))
                number = numbers[outcome.cell]
                if isinstance(outcome, Failure):
                    failed.append(outcome)
                    _print_failure(self.console, number, outcome)
                else:
                    results[outcome.cell] = outcome
                    self._print_result(number, outcome, _time_text(outcome))
        _write_csv(store, self.workdir, bars)
        if failed and failures is None:
            raise failures_error(failed, self.workdir)
        return [results[cell.name] for cell in cells if cell.name in results]

    def _print_result(self, number: str, result: Result, how: str) -> None:
        if not self.brief:
            _print_result(self.console, number, result, how)

    @contextlib.contextmanager
    def _runner(self, store: Store, bars: Bars, wanted: list[Cell]) -> Iterator[Launched]:
        """The runner of the cells, while its progress is shown."""
        sweep = read_settings(self.sweep_config)
        progress: Progress = bars
        with contextlib.ExitStack() as stack:
            if (names := sweep.logger_names) and jax.process_index() == 0:
                loggers = [LOGGERS[name](store.workdir) for name in names]
                progress = stack.enter_context(contextlib.closing(Curves(loggers, bars)))
            stack.enter_context(bars)
            if self.launch:
                yield self.launch(self.sweep_config, store, bars)
                return
            feed = Feed(sweep)
            for cell in wanted:  # missing data are named before weights are downloaded
                if not store.result_path(cell.name).exists():
                    feed.data(cell.task)
            trainer = Trainer(sweep, progress, feed)
            yield Runner(sweep, store, progress, self.rerun, trainer, self.failed_before)


def run_sweep(
    sweep_config: ConfigDict,
    workdir: str,
    console: Console,
    failures: list[Failure] | None = None,
    only: list[str] | None = None,
    *,
    launch: Launch | None = None,
) -> list[Result]:
    """Runs a sweep, as `Sweep.run` does."""
    return Sweep(sweep_config, workdir, console, launch).run(failures, only)


def _check_data(runner: Runner, cells: list[Cell], results: dict[str, Result]) -> None:
    """Raises UserError if data are missing or differ from the data of the results.

    Called first, because a sweep may run for hours before it reads the last task.
    """
    for cell in cells:
        runner.trainer.feed.data(cell.task)
    runner.check_folders(results)
    runner.check_sources(cells, results)


def _write_csv(store: Store, workdir: str, bars: Bars) -> None:
    """Writes results.csv of all results in the work directory, also of other plans."""
    try:
        text = csv_text(read_results(workdir, refuse=bars.note))
        store.write(store.workdir / "results.csv", text.encode(errors="backslashreplace"))
    except UserError as error:
        if error.at_once:
            raise
        bars.note(f"No results.csv: {error}")


def _time_text(result: Result) -> str:
    seconds = f"{result.seconds['cell']:.0f} s"
    runs = result.stack.get("runs", 1)
    return f"{seconds}, its share of {runs} together" if runs > 1 else seconds


def _print_failure(console: Console, number: str, failure: Failure) -> None:
    text = " ".join(str(failure.error).split())
    text = text if len(text) <= 300 else f"{text[:299]}…"
    console.print(f"{number} {failure.cell}: FAILED, {text}")


def failures_error(failures: list[Failure], workdir: str) -> UserError:
    """The error of a command whose cells failed."""
    texts = [f"{failure.cell}: {failure.error}" for failure in failures[:10]]
    if len(failures) > 10:
        texts.append(f"and {len(failures) - 10} more")
    return UserError(
        f"{count_of(len(failures), 'cell')} failed; what is known of each is in "
        f"{workdir}/failures. The same command runs them again.\n" + "\n".join(texts)
    )


def _print_result(console: Console, number: str, result: Result, how: str) -> None:
    chosen = [f"scale {result.scale:g}"]
    labels = ", ".join(result.selection)
    for name in GRID.values():
        if name != "scale" and f"{name}=" in labels:
            chosen.append(f"{name.replace('_', ' ')} {getattr(result, name):g}")
    accuracy = f"{result.accuracy:5.1f} %"
    console.print(f"{number} {result.cell}: {accuracy}  {', '.join(chosen)}  ({how})")
    if result.broke_down:
        console.print(
            f"{result.cell} broke down: its training loss ended no lower than guessing has it. A "
            "smaller learning rate may mend that."
        )
    if result.search:
        console.print(architecture_text(result.search))


def _print_parameters(console: Console, runner: Runner, cells: list[Cell]) -> None:
    """Prints the model, the devices, and what each method trains."""
    trainer, devices = runner.trainer, jax.devices()
    config = trainer.model.config
    console.print(
        f"{trainer.sweep.run.variant}: {count_parameters(trainer.base):,} parameters, frozen, from "
        f"{trainer.weights}, on {len(devices)} x {devices[0].device_kind}."
    )
    for name, method in {(c.method_name, c.method): None for c in cells}:
        factors = jax.eval_shape(
            lambda base, m=method: m.init(jax.random.key(0), config, base), trainer.base
        )
        fields = describe(method)[1]
        fields.pop("scale")
        text = ", ".join(f"{k}={v}" for k, v in fields.items())
        console.print(f"\n{name}({text}), and a head of ({config.width} + 1) x classes")
        if factors:
            print_table(console, parameter_table(factors))
