"""All methods at 1 to 16 images a class of the offline tasks, as a committed result.

    python -m benchmarks.fewshot [--methods NAMES] [--tasks NAMES] [--shots 1,4] [--seeds 0,1]

Runs `configs/fewshot.py:quickstart` (the unfinished part, if --workdir has results) through the
same code as `python -m experiments.fewshot`, prints its table, and draws its figure in --workdir.
Writes mean, standard error and each seed's accuracy. If --out exists, its other cells stay. The
offline tasks are not the paper's five sets.
"""

from pathlib import Path

from etils import epath
from rich.console import Console

from benchmarks.accuracy import cells
from benchmarks.common import option_parser
from configs import fewshot
from fact_jax.cli.local import run_sweep
from fact_jax.report.fewshot import draw_few_shot, terminal_few_shot_table
from fact_jax.report.terminal import print_table

CHANGES = ("tasks", "methods", "epochs", "shots", "seeds")


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/fewshot_quickstart.json"))
    cells.add_changes(parser, *CHANGES)
    parser.add_argument("--workdir", default="runs/fewshot-quickstart")
    a = parser.parse_args()
    config = fewshot.get_config("quickstart")
    given = cells.change(config, a, *CHANGES)
    console = Console()
    results = run_sweep(config, a.workdir, console)
    print_table(console, terminal_few_shot_table(results))
    draw_few_shot(results, epath.Path(a.workdir))
    cells.write(a.out, f"python -m benchmarks.fewshot{given}", results)
    console.print(f"Wrote {a.out}.")


if __name__ == "__main__":
    main()
