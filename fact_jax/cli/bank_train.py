"""A dictionary of factors that several tasks learn together.

    python -m experiments.bank train --config CONFIG --config.methods=fact_tt --workdir DIR \\
        --dictionary tasks.dictionary

Trains all tasks of the config at once, with one method, fact_tt, fact_tk or metatt_tasks, and one
seed. U and V (of fact_tk, C, too; of metatt_tasks, all but T) are the same for all of them: after
each step they are the mean of what the tasks have made of them. The tasks' own factor files and
results are in the work directory, as those of any sweep. Run again, it resumes. A new task trains
its cores and its head with the dictionary by --config.fact_tt.shared=tasks.dictionary.
"""

import os
from pathlib import Path

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from fact_jax.cli import sweep
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.dictionary import SUFFIX
from fact_jax.files.load import load_factors
from fact_jax.serving.outputs import prepare_output
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import split_names
from fact_jax.sweep.result import Result
from fact_jax.sweep.shared import LEARN


def define_flags() -> None:
    """Defines the flags of a sweep, and --dictionary."""
    sweep.define_flags("quickstart")
    flags.DEFINE_string("dictionary", "", f"The dictionary to write, {SUFFIX}.")


def _check(sweep_config: ConfigDict, out: str) -> None:
    """Raises UserError for a config that does not learn one dictionary."""
    methods, seeds = split_names(sweep_config.methods), list(sweep_config.seeds)
    if len(methods) != 1 or len(seeds) != 1:
        raise UserError(
            f"A dictionary is of one method and one seed, and the config has {', '.join(methods)} "
            f"and seeds {seeds}. Set --config.methods=fact_tt --config.seeds=0, say."
        )
    if Path(out).suffix != SUFFIX:
        raise UserError(f"--dictionary is {out!r}; expected a name that ends in {SUFFIX}.")


def main() -> None:
    config, out = flags.FLAGS.config, os.path.expanduser(flags.FLAGS.dictionary)
    _check(config, out)
    prepare_output(out)
    config.shared = LEARN

    def finish(
        sweep_config: ConfigDict, results: list[Result], console: Console, workdir: epath.Path
    ) -> None:
        if len(results) < (tasks := len(make_plan(sweep_config))):
            console.print(f"No dictionary yet: {len(results)} of {tasks} tasks have results.")
            return
        task = load_factors(Path(workdir) / "factors" / f"{results[0].cell}.safetensors")
        assert task.dictionary is not None
        write_atomically(out, task.dictionary.content)
        console.print(
            f"Wrote {out}: {len(task.dictionary.content):,} bytes, of {len(results)} tasks."
        )

    sweep.command(finish)
