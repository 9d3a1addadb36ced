"""Whether FacT beats a linear probe on the offline suite: the quickstart over several seeds.

    python -m benchmarks.quickstart --workdir DIR [--seeds 0,1,2] [--out FILE.json]

Runs `configs/quickstart.py` through the same code as `python -m experiments.vtab`, once per seed,
and resumes like it. Each difference from the linear probe has two standard errors: over
seeds alone, and with the sampling error of the test images added. The second is too large, because
it treats the methods as if they had been tested on different images.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import cells
from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax.cli.local import run_sweep
from fact_jax.report.averages import stat
from fact_jax.sweep.result import Result

BASELINE = "linear"


def compare(results: list[Result]) -> list[dict[str, Any]]:
    """One row per task and method: mean, standard error over seeds, difference from the probe.

    Accuracies and errors are in percent; `ratio` is the difference over its standard error.
    """
    accuracy: dict[tuple[str, str], list[float]] = defaultdict(list)
    tested = {}
    for r in results:
        accuracy[r.task, r.method].append(r.accuracy)
        tested[r.task] = r.num_test
    rows = []
    for (task, method), values in accuracy.items():
        mean, error, _ = stat(values)
        base, base_error, _ = stat(accuracy[task, BASELINE])
        row = {"task": task, "method": method, "accuracies": values, "mean": mean, "error": error}
        if method != BASELINE and error is not None and base_error is not None:
            sampling = sum(p * (100 - p) for p in (mean, base)) / tested[task]
            seeds = math.hypot(error, base_error)
            both = math.hypot(seeds, math.sqrt(sampling))
            row |= {
                "difference": mean - base,
                "error_seeds": seeds,
                "error_seeds_and_sampling": both,
                "ratio_seeds": _ratio(mean - base, seeds),
                "ratio_seeds_and_sampling": _ratio(mean - base, both),
            }
        rows.append(row)
    return rows


def _ratio(difference: float, error: float) -> float | None:
    return difference / error if error > 0 else None


def print_table(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="Offline suite, top-1 accuracy on test, %", title_justify="left")
    table.add_column("task")
    table.add_column("method")
    for name in ("mean ± s.e.", "over linear", "in s.e. (seeds)", "in s.e. (seeds + test images)"):
        table.add_column(name, justify="right")
    for row in rows:
        error = "" if row["error"] is None else f" ± {row['error']:.2f}"
        texts = [row["task"], row["method"], f"{row['mean']:.2f}{error}"]
        if "difference" in row:
            texts.append(f"{row['difference']:+.2f}")
            for key in ("ratio_seeds", "ratio_seeds_and_sampling"):
                texts.append("-" if row[key] is None else f"{row[key]:.1f}")
        table.add_row(*texts)
    console.print(table)


def main() -> None:
    parser = option_parser(__doc__, seeds="0,1,2", out=Path("benchmarks/results/quickstart.json"))
    parser.add_argument("--workdir", default="runs/quickstart_seeds")
    cells.add_changes(parser, "seeds", "tasks", "epochs")
    args = parser.parse_args()
    config = quickstart.get_config()
    cells.change(config, args, "seeds", "tasks", "epochs")
    console = Console()
    results = run_sweep(config, args.workdir, console)
    rows = compare(results)
    print_table(rows, console)
    record = {
        "seeds": list(config.seeds),
        "weights_sha256": results[0].settings["weights_sha256"],
        "seconds": sum(r.seconds["cell"] for r in results),
        "rows": rows,
        "settings": {r.cell: r.settings for r in results},
        "environment": results[0].environment,
    }
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
