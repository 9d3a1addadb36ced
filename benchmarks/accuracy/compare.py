"""All methods on the offline tasks, as a committed result.

    python -m benchmarks.compare [--which quickstart|dinov2] [--weights FILE] [--seeds 0,1]

Runs `configs/compare.py` (or what is left of it in --workdir) through the same code as
`python -m experiments.vtab`, prints its table, and writes accuracies per seed, what was chosen on
val200 and from how many, numbers and bytes stored, or adds them to what --out has of other seeds,
tasks and methods. The offline suite is not VTAB-1K.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.accuracy import cells
from configs import compare
from fact_jax.cli.local import run_sweep
from fact_jax.report.tables import comparison_table, print_table
from fact_jax.sweep.plan import task_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--which", default="quickstart", choices=["quickstart", "dinov2"])
    parser.add_argument("--weights", default="", help="file of dinov2's")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=0)
    parser.add_argument("--workdir")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    config = compare.get_config(a.which)
    for name in ("weights", "tasks", "methods", "epochs", "image_size"):
        if getattr(a, name):
            config[name] = getattr(a, name)
    if a.seeds:
        config.seeds = tuple(int(seed) for seed in a.seeds.split(","))
    console = Console()
    results = run_sweep(config, a.workdir or f"runs/compare-{a.which}", console)
    print_table(console, comparison_table(results, task_names(config.tasks)))
    out = a.out or Path(f"benchmarks/results/compare_{a.which}.json")
    names = ("weights", "tasks", "methods", "seeds", "epochs", "image_size")
    given = "".join(f" --{name} {getattr(a, name)}" for name in names if getattr(a, name))
    cells.write(out, f"python -m benchmarks.compare --which {a.which}{given}", results)
    console.print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
