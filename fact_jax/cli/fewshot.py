"""Few-shot learning, as a sweep that goes on where it was stopped.

    python -m experiments.fewshot --config fewshot_tt --workdir runs/few
    python -m experiments.fewshot --config fewshot:lora,noah --workdir runs/few

Runs the tasks of the config at each number of shots and prints accuracy against shots as a table.
Where matplotlib is installed, it draws them with the published points: DIR/fewshot.png and .svg.
"""

from importlib.util import find_spec

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from fact_jax.cli import sweep
from fact_jax.cli.terminal import Console
from fact_jax.command_line import command
from fact_jax.data import get_task
from fact_jax.errors import UserError
from fact_jax.report.fewshot import draw_few_shot, terminal_few_shot_table
from fact_jax.report.terminal import print_table
from fact_jax.sweep.plan import task_names
from fact_jax.sweep.result import Result


def define_flags() -> None:
    """Defines the flags of a sweep."""
    sweep.define_flags("fewshot_tt")


def _finish(
    sweep_config: ConfigDict, results: list[Result], console: Console, workdir: epath.Path
) -> None:
    if not any(get_task(result.task).few_shot for result in results):
        return  # --cells chose others, or these failed
    print_table(console, terminal_few_shot_table(results))
    if jax.process_index() == 0:
        if find_spec("matplotlib") is None:
            console.print("No figure: matplotlib is not installed (pip install matplotlib).")
        else:
            paths = draw_few_shot(results, workdir)
            console.print(f"Figure: {' and '.join(map(str, paths))}.")


def main() -> None:
    config = flags.FLAGS.config
    names = task_names(config.tasks, config.get("shots", ()))
    if not any(get_task(name).few_shot for name in names):
        raise UserError(
            f"No task of this config is a few-shot task ({', '.join(names[:3])}). Say how many "
            f"images a class, such as --config.tasks={names[0]}_1shot,{names[0]}_4shot, or use "
            f"`{command('vtab')}`."
        )
    sweep.command(_finish)
