"""The commands that run a sweep: their flags, and what they show at the end."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from fact_jax.cli import configs, process, stopping
from fact_jax.cli.dry_run import show_plan
from fact_jax.cli.launchers import options
from fact_jax.cli.local import failures_error, run_sweep
from fact_jax.cli.overrides import overridden
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.report.architecture import draw_architecture
from fact_jax.sweep.plan import make_plan, schedule_warning
from fact_jax.sweep.resolution import read_settings, split_names
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import absolute

NOTES = {
    "val": "Protocol 'val': last epoch on test; what has several candidates is chosen on "
    "validation data.",
    "paper": "Protocol 'paper': best of the test evaluations, as published.",
}


def define_flags(default_config: str) -> None:
    """Defines --config, --workdir, --cells, --dry_run, --distributed, --launcher, --launch."""
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


def command(finish: Callable[[ConfigDict, list[Result], Console, epath.Path], None]) -> None:
    """Runs the sweep that the flags describe.

    ``finish(sweep_config, results, console, workdir)`` shows the results. After that, cells that
    failed end the command with an error.
    """
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
    sweep_config = flags.FLAGS.config
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = Path(file).stem + (f"-{argument}" if argument else "")
    workdir = flags.FLAGS.workdir or f"runs/{name}"
    hints = overridden(sweep_config, config_flags.get_override_values(flags.FLAGS["config"]))
    if flags.FLAGS.dry_run:  # beside a sweep that has the accelerators
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cells = split_names(flags.FLAGS.cells)
    # Asked for its index, a process takes the accelerators.
    runs = bool(flags.FLAGS.distributed) or not flags.FLAGS.dry_run
    console = Console(quiet=runs and jax.process_index() != 0)
    for hint in hints:
        console.print(hint)
    if flags.FLAGS.dry_run:
        show_plan(sweep_config, workdir, console, flags.FLAGS.launcher if launch else "", cells)
        return
    failures: list[Failure] = []
    results = run_sweep(sweep_config, workdir, console, failures, cells, launch=launch)
    if results:
        finish(sweep_config, results, console, absolute(workdir))
        _draw_architectures(results, console, absolute(workdir))
        run = read_settings(sweep_config).run
        notes = [NOTES[run.protocol]]
        if cold := schedule_warning(sweep_config, make_plan(sweep_config)):
            notes.append(cold)
        if run.train_limit or run.eval_limit or run.mock_data:
            notes.append("Shortened or mock data: these numbers measure nothing.")
        console.print(" ".join(notes), f"Results and factors are in {workdir}.")
    if failures:
        raise failures_error(failures, workdir)


def _draw_architectures(results: list[Result], console: Console, workdir: epath.Path) -> None:
    """Draws DIR/architectures/<cell>.png of each search, where matplotlib is installed."""
    searched = [(result.cell, result.search) for result in results if result.search]
    if not searched or jax.process_index() != 0 or find_spec("matplotlib") is None:
        return
    folder = workdir / "architectures"
    folder.mkdir(parents=True, exist_ok=True)
    for cell, search in searched:
        draw_architecture(search, folder / f"{cell}.png")
    console.print(f"Found architectures are drawn in {folder}.")
