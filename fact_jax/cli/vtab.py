"""A sweep of tuning methods over tasks.

    python -m experiments.vtab --config quickstart --workdir runs/quickstart
    python -m experiments.vtab --config tt_rank16 --config.tasks=dtd,svhn --workdir runs/two
    python -m experiments.vtab --config tt_rank16 --config.data_dir=/data \\
        --config.tasks=folder_flowers --workdir runs/flowers

Run again with the same arguments, it skips what is finished and resumes what is not. Without
--config it runs the offline quickstart.
"""

from etils import epath
from ml_collections import ConfigDict

from fact_jax.cli import sweep
from fact_jax.cli.terminal import Console
from fact_jax.report.tables import terminal_table
from fact_jax.report.terminal import print_table
from fact_jax.sweep.plan import task_names
from fact_jax.sweep.result import Result


def define_flags() -> None:
    """Defines the flags of a sweep."""
    sweep.define_flags("quickstart")


def _finish(
    sweep_config: ConfigDict, results: list[Result], console: Console, workdir: epath.Path
) -> None:
    methods = dict.fromkeys(r.method for r in results)
    rows = {m: sweep_config[m].get("published", "") if m in sweep_config else "" for m in methods}
    tasks = task_names(sweep_config.tasks, sweep_config.get("shots", ()))
    print_table(console, terminal_table(results, tasks, rows))


def main() -> None:
    sweep.command(_finish)
