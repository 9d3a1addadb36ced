"""All methods on the offline tasks, as a committed result.

    python -m benchmarks.compare [--which quickstart|dinov2] [--weights FILE] [--seeds 0,1]

Runs `configs/compare.py` (the unfinished part, if --workdir has results) through the same code as
`python -m experiments.vtab`, and prints its table. Writes the accuracy of each seed, what was
chosen on val200 and from how many, and the numbers and bytes stored. If --out exists, its other
seeds, tasks and methods stay. The offline suite is not VTAB-1K.
"""

from pathlib import Path

from rich.console import Console

from benchmarks.accuracy import cells
from benchmarks.common import option_parser
from configs import compare
from fact_jax.cli.local import run_sweep
from fact_jax.report.tables import terminal_table
from fact_jax.report.terminal import print_table
from fact_jax.sweep.plan import task_names

CHANGES = ("weights", "tasks", "methods", "seeds", "epochs", "image_size")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--which", default="quickstart", choices=["quickstart", "dinov2"])
    cells.add_changes(parser, *CHANGES)
    parser.add_argument("--workdir")
    a = parser.parse_args()
    config = compare.get_config(a.which)
    given = cells.change(config, a, *CHANGES)
    console = Console()
    results = run_sweep(config, a.workdir or f"runs/compare-{a.which}", console)
    print_table(console, terminal_table(results, task_names(config.tasks)))
    out = a.out or Path(f"benchmarks/results/compare_{a.which}.json")
    cells.write(out, f"python -m benchmarks.compare --which {a.which}{given}", results)
    console.print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
