"""What the commands that run a sweep share: flags and the sweep itself."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from fact_jax.cli import configs, process, stopping
from fact_jax.cli.dry_run import show_plan
from fact_jax.cli.launchers import options
from fact_jax.cli.live import Bars, Scalars, Several
from fact_jax.cli.overrides import overridden
from fact_jax.cli.terminal import Console
from fact_jax.command_line import this_command
from fact_jax.errors import UserError
from fact_jax.report.architecture import architecture_text, draw_architecture
from fact_jax.report.records import csv_text, read_results
from fact_jax.report.tables import parameter_table, print_table
from fact_jax.sweep.plan import Cell, make_plan, schedule_warning
from fact_jax.sweep.resolution import read_settings, split_names
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Failure, Progress
from fact_jax.sweep.store import Store, absolute
from fact_jax.tuning import count_parameters
from fact_jax.tuning.method import SearchMethod
from fact_jax.tuning.registry import describe

NOTES = {
    "val": "Protocol 'val': last epoch on test; what has several candidates is chosen on "
    "validation data.",
    "paper": "Protocol 'paper': best of the test evaluations, as published.",
}


def define_flags(default_config: str) -> None:
    """--config, --workdir, --cells, --dry_run, --distributed, --launcher and --launch."""
    configs.define_flag(default_config)
    flags.DEFINE_string(
        "workdir",
        None,
        "Where results and factors go; by default runs/, the config file's name and its argument.",
    )
    flags.DEFINE_string("cells", "", "Only these cells of the sweep, names with commas between.")
    flags.DEFINE_bool("dry_run", False, "Show the cells, their cost and what is done; run nothing.")
    flags.DEFINE_string(
        "distributed",
        "",
        "Several processes, the same command on each, on a shared --workdir: 'auto' on a TPU slice "
        "or under Slurm, else HOST:PORT,COUNT,INDEX with process 0's address.",
    )
    options.define_flags()


def command(finish: Callable[[ConfigDict, list[dict], Console, epath.Path], None]) -> None:
    """Runs the sweep that the flags describe; ``finish(config, results, console, workdir)`` shows
    what came out of it. Cells that failed end the command with an error after that."""
    stopping.end_gently()
    launch = options.launcher(flags.FLAGS.launcher, flags.FLAGS.launch)
    if launch and flags.FLAGS.distributed:
        raise UserError(
            f"--distributed is for --launcher=local; with {flags.FLAGS.launcher} every task or job "
            "is a process of its own."
        )
    if launch:  # this process only watches: the accelerators are for others
        jax.config.update("jax_platforms", "cpu")
    if flags.FLAGS.distributed:
        process.join_processes(flags.FLAGS.distributed)
    config = flags.FLAGS.config
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = Path(file).stem + (f"-{argument}" if argument else "")
    workdir = flags.FLAGS.workdir or f"runs/{name}"
    hints = overridden(config, config_flags.get_override_values(flags.FLAGS["config"]))
    if flags.FLAGS.dry_run:  # beside a sweep that has the accelerators
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        quiet = bool(flags.FLAGS.distributed) and jax.process_index() != 0
        console = Console(quiet=quiet)
        for hint in hints:
            console.print(hint)
        show_plan(config, workdir, console, flags.FLAGS.launcher if launch else "")
        return
    console = Console(quiet=jax.process_index() != 0)
    for hint in hints:
        console.print(hint)
    failures: list[Failure] = []
    results = run_sweep(config, workdir, console, failures, split_names(flags.FLAGS.cells), launch)
    if results:
        finish(config, results, console, absolute(workdir))
        _draw_architectures(results, console, absolute(workdir))
        notes = [NOTES[config.protocol]]
        if cold := schedule_warning(config, make_plan(config)):
            notes.append(cold)
        if config.train_limit or config.eval_limit or config.mock_data:
            notes.append("Shortened or mock data: these numbers measure nothing.")
        console.print(" ".join(notes), f"Results and factors are in {workdir}.")
    if failures:
        raise _together(failures, workdir)


def rerun_command(cell: str) -> str:
    """The command that runs one cell of this sweep again."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        flag, is_value, _ = word.partition("=")
        if flag.lstrip("-") not in ("cells", "distributed") or not flag.startswith("-"):
            words.append(word)
        elif not is_value:
            next(given, None)  # the flag's value is the next word
    return shlex.join([*this_command(), *words, f"--cells={cell}"])


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


class LocalRunner(Runner):
    """Runs cells in this process."""

    def check_data(self, cells: list[Cell], results: dict[str, dict[str, Any]]) -> None:
        """UserError if data are missing, or others than the results': better known now than after
        hours."""
        for cell in cells:
            self.trainer.feed.data(cell.task)
        self.check_folders(results)
        self.check_sources(cells, results)

    def describe(self, console: Console, cells: list[Cell]) -> None:
        """The model, the devices, and what each method trains."""
        _print_parameters(console, self, cells)


def run_sweep(
    config: ConfigDict,
    workdir: str,
    console: Console,
    failures: list[Failure] | None = None,
    only: list[str] | None = None,
    launch: options.Launch | None = None,
    rerun: Callable[[str], str] = rerun_command,
) -> list[dict]:
    """Runs what is not finished yet, of all cells or those named in `only`, printing a line per
    cell; all results, of cells finished before, too.

    Cells that fail are added to `failures`, or raised at the end where none is given. They run in
    this process, or where `launch` has them run; ``rerun(cell)`` is what a failure's record says.
    """
    failed: list[Failure] = [] if failures is None else failures
    cells, only = make_plan(config), only or []
    numbers = {cell.name: f"[{i}/{len(cells)}]" for i, cell in enumerate(cells, 1)}
    if unknown := [name for name in only if name not in numbers]:
        raise UserError(
            f"--cells: {unknown[0]!r} is not a cell of this sweep, which has {cells[0].name} to "
            f"{cells[-1].name}; --dry_run shows them all."
        )
    if cold := schedule_warning(config, cells):
        console.print(cold)
    bars = Bars(console)
    store = Store(workdir, bars.note)
    with contextlib.ExitStack() as stack:
        listeners: list[Progress] = [bars]
        if config.tensorboard and jax.process_index() == 0:
            listeners.append(stack.enter_context(contextlib.closing(Scalars(store.workdir))))
        stack.enter_context(bars)
        runner: options.Launched = (
            stack.enter_context(launch(config, store, bars, only))
            if launch
            else LocalRunner(read_settings(config), store, Several(listeners), rerun)
        )
        results = {c.name: r for c in cells if (r := runner.finished(c)) is not None}
        todo = [c for c in cells if c.name not in results and (not only or c.name in only)]
        runner.check_data(todo, results)
        bars.expect(sum(epochs_of(cell) for cell in todo), len(todo), len(results))
        store.write_json(store.workdir / "config.json", config.to_dict())
        runner.describe(console, cells)
        for name, result in results.items():
            _print_result(console, numbers[name], result, "finished before")
        for outcome in runner.run(cells, results, only):
            bars.finished(failed=isinstance(outcome, Failure))
            if isinstance(outcome, Failure):
                failed.append(outcome)
                text = " ".join(str(outcome.error).split())
                text = text if len(text) <= 300 else f"{text[:299]}…"
                console.print(f"{numbers[outcome.cell]} {outcome.cell}: FAILED, {text}")
                continue
            results[outcome["cell"]] = outcome
            how = f"{outcome['seconds']['cell']:.0f} s"
            if (runs := outcome.get("stack", {}).get("runs", 1)) > 1:
                how += f", its share of {runs} together"
            _print_result(console, numbers[outcome["cell"]], outcome, how)
    try:
        stored = read_results(workdir, refuse=bars.note)  # of other plans in the same folder, too
        store.write_csv(csv_text(stored))
    except UserError as error:
        if error.at_once:
            raise
        bars.note(f"No results.csv: {error}")
    if failed and failures is None:
        raise _together(failed, workdir)
    return [results[cell.name] for cell in cells if cell.name in results]


def _together(failures: list[Failure], workdir: str) -> UserError:
    texts = [f"{failure.cell}: {failure.error}" for failure in failures[:10]]
    if len(failures) > 10:
        texts.append(f"and {len(failures) - 10} more")
    cells = "1 cell" if len(failures) == 1 else f"{len(failures)} cells"
    return UserError(
        f"{cells} failed; what is known of each is in {workdir}/failures. The same command runs "
        "them again.\n" + "\n".join(texts)
    )


def _print_result(console: Console, number: str, result: dict, how: str) -> None:
    chosen = [f"scale {result['scale']:g}"]
    if "learning_rate=" in "".join(result["selection"]):
        chosen.append(f"learning rate {result['learning_rate']:g}")
    if "weight_decay=" in "".join(result["selection"]):
        chosen.append(f"weight decay {result['weight_decay']:g}")
    accuracy = f"{result['accuracy']:5.1f} %"
    console.print(f"{number} {result['cell']}: {accuracy}  {', '.join(chosen)}  ({how})")
    if result["search"]:
        console.print(architecture_text(result["search"]))


def epochs_of(cell: Cell) -> int:
    """Epochs of all its trainings, and generations of its search."""
    grid = len(cell.candidates) if len(cell.candidates) > 1 else 0
    epochs, method = cell.settings.epochs * (1 + grid), cell.method
    if isinstance(method, SearchMethod):
        epochs += method.supernet_epochs + method.generations
    return epochs


def _print_parameters(console: Console, runner: Runner, cells: list[Cell]) -> None:
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
