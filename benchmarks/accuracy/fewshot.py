"""All methods at 1 to 16 images a class of the offline tasks, as a committed result.

    python -m benchmarks.fewshot [--methods NAMES] [--tasks NAMES] [--shots 1,4] [--seeds 0,1]

Runs `configs/fewshot.py:quickstart` (or what is left of it in --workdir) through the same code as
`python -m experiments.fewshot`, prints its table, draws its figure in --workdir and writes mean,
standard error and each seed's accuracy, or adds them to what --out has of other cells. The offline
tasks are not the paper's five sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from etils import epath
from rich.console import Console

from benchmarks.accuracy import cells
from configs import fewshot
from fact_jax.cli.local import run_sweep
from fact_jax.report.fewshot import draw_few_shot, few_shot_table
from fact_jax.report.tables import print_table

NUMBERS = ("shots", "seeds")
CHANGES = ("tasks", "methods", "epochs", *NUMBERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in CHANGES:
        parser.add_argument(f"--{name}", type=int if name == "epochs" else str)
    parser.add_argument("--workdir", default="runs/fewshot-quickstart")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/fewshot_quickstart.json")
    )
    a = parser.parse_args()
    given = {name: getattr(a, name) for name in CHANGES if getattr(a, name)}
    config = fewshot.get_config("quickstart")
    for name, value in given.items():
        config[name] = tuple(map(int, value.split(","))) if name in NUMBERS else value
    console = Console()
    results = run_sweep(config, a.workdir, console)
    print_table(console, few_shot_table(results))
    draw_few_shot(results, epath.Path(a.workdir))
    words = ["python -m benchmarks.fewshot", *(f"--{name} {v}" for name, v in given.items())]
    cells.write(a.out, " ".join(words), results)
    console.print(f"Wrote {a.out}.")


if __name__ == "__main__":
    main()
