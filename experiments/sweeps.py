"""What the commands that run a sweep share: flags, progress, the sweep itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip

from experiments import cli
from fact_jax.report.architecture import architecture_text, draw_architecture
from fact_jax.report.tables import parameter_table
from fact_jax.sweep.plan import Cell, make_plan
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.store import Store, absolute
from fact_jax.training.trial import NonFiniteLoss
from fact_jax.tuning import count_parameters
from fact_jax.tuning.method import SearchMethod
from fact_jax.tuning.registry import describe

NOTES = {
    "val": "Protocol 'val': last epoch on test; what has several candidates is chosen on "
    "validation data.",
    "paper": "Protocol 'paper': best of the test evaluations, as published.",
}


def define_flags(default_config: str) -> None:
    """--config, --workdir and --distributed."""
    config_flags.DEFINE_config_file("config", default_config, "Config file.")
    flags.DEFINE_string(
        "workdir",
        None,
        "Where results and factors go; by default runs/, the config file's name and its argument.",
    )
    flags.DEFINE_string(
        "distributed",
        "",
        "Several processes, the same command on each, on a shared --workdir: 'auto' on a TPU slice "
        "or under Slurm, else HOST:PORT,COUNT,INDEX with process 0's address.",
    )


def command(finish: Callable[[ConfigDict, list[dict], Console, epath.Path], None]) -> None:
    """Runs the sweep that the flags describe; ``finish(config, results, console, workdir)`` shows
    what came out of it. Cells that failed end the command with an error after that."""
    if flags.FLAGS.distributed:
        cli.join_processes(flags.FLAGS.distributed)
    config, console = flags.FLAGS.config, Console(quiet=jax.process_index() != 0)
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = Path(file).stem + (f"-{argument}" if argument else "")
    workdir = flags.FLAGS.workdir or f"runs/{name}"
    failures: list[NonFiniteLoss] = []
    results = run_sweep(config, workdir, console, failures)
    if results:
        finish(config, results, console, absolute(workdir))
        _draw_architectures(results, console, absolute(workdir))
        notes = [NOTES[config.protocol]]
        if config.train_limit or config.eval_limit or config.mock_data:
            notes.append("Shortened or mock data: these numbers measure nothing.")
        console.print(" ".join(notes), f"Results and factors are in {workdir}.")
    if failures:
        raise _together(failures)


class Bars:
    """Two bars: epochs of all runs with the time left, and epochs of the runs under way."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._all = progress.add_task("sweep", total=None)
        self._run = progress.add_task("", total=1)
        self._done = 0
        self._before = 0
        self._runs = 1

    def expect(self, epochs: int) -> None:
        """What is still to run: cells finished before would make the time left look short."""
        self._progress.update(self._all, total=epochs)

    def start(self, names: list[str], stage: str, epochs: int) -> None:
        self._done += self._before
        self._runs, self._before = len(names), len(names) * epochs
        self._progress.update(self._all, completed=self._done)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._progress.reset(self._run, total=epochs, description=f"{names[0]}{more}, {stage}")

    def epoch(self, done: int, loss: float) -> None:
        cli.check_interrupt()
        self._progress.update(self._run, completed=done)
        self._progress.update(self._all, completed=self._done + done * self._runs)


def _draw_architectures(results: list[dict], console: Console, workdir: epath.Path) -> None:
    """DIR/architectures/<cell>.png of those that were searched for, where matplotlib is."""
    found = [result for result in results if result["search"]]
    if not found or jax.process_index() != 0 or find_spec("matplotlib") is None:
        return
    folder = workdir / "architectures"
    folder.mkdir(parents=True, exist_ok=True)
    for result in found:
        draw_architecture(result["search"], folder / f"{result['cell']}.png")
    console.print(f"Found architectures are drawn in {folder}.")


def run_sweep(
    config: ConfigDict,
    workdir: str,
    console: Console,
    failures: list[NonFiniteLoss] | None = None,
) -> list[dict]:
    """Runs what is not finished yet, printing a line per cell; all results.

    Cells that diverge are added to `failures`, or raised at the end where none is given.
    """
    failed: list[NonFiniteLoss] = [] if failures is None else failures
    cells, store = make_plan(config), Store(workdir)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as progress:
        bars = Bars(progress)
        runner = Runner(config, store, bars)
        results = [runner.finished(cell) for cell in cells]
        todo = [cell for cell, result in zip(cells, results, strict=True) if result is None]
        for cell in todo:  # missing data are better known now than after hours
            runner.trainer.feed.data(cell.task)
        bars.expect(sum(_epochs(cell) for cell in todo))
        store.write_json(store.workdir / "config.json", config.to_dict())
        _print_parameters(console, runner, cells)
        for i, result in enumerate(results):
            if result is not None:
                _print_result(console, i, len(cells), result, "finished before")
        for i, result in runner.run(cells, results, failed):
            results[i] = result
            how = f"{result['seconds']['cell']:.0f} s"
            if (runs := result["stack"]["runs"]) > 1:
                how += f", its share of {runs} together"
            _print_result(console, i, len(cells), result, how)
    if failed and failures is None:
        raise _together(failed)
    return [r for r in results if r is not None]


def _together(failures: list[NonFiniteLoss]) -> NonFiniteLoss:
    return NonFiniteLoss("\n".join(map(str, failures)))


def _print_result(console: Console, i: int, count: int, result: dict, how: str) -> None:
    accuracy = f"{result['accuracy']:5.1f} %"
    console.print(
        f"[{i + 1}/{count}] {result['cell']}: {accuracy}  scale {result['scale']:g}  ({how})"
    )
    if result["search"]:
        console.print(architecture_text(result["search"]))


def _epochs(cell: Cell) -> int:
    grid = len(cell.candidates) if len(cell.candidates) > 1 else 0
    epochs, method = cell.settings["epochs"] * (1 + grid), cell.method
    if isinstance(method, SearchMethod):
        epochs += method.supernet_epochs + method.generations
    return epochs


def _print_parameters(console: Console, runner: Runner, cells: list[Cell]) -> None:
    trainer, devices = runner.trainer, jax.devices()
    config = trainer.model.config
    console.print(
        f"{runner.config.variant}: {count_parameters(trainer.base):,} parameters, frozen, from "
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
            console.print(parameter_table(factors))
