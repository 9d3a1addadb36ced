"""All methods on the offline tasks, as a committed result.

    python -m benchmarks.compare [--which quickstart|dinov2] [--weights FILE] [--tasks NAMES]

Runs `configs/compare.py` (or what is left of it in --workdir) through the same code as
`python -m experiments.vtab`, prints its table, and writes accuracies per seed, what was chosen on
val200 and from how many, numbers and bytes stored. The offline suite is not VTAB-1K.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from configs import compare
from experiments.vtab import run_sweep
from fact_jax.report.tables import comparison_table, mean_and_error, print_table
from fact_jax.sweep.plan import task_names


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and task."""
    rows = []
    for method in dict.fromkeys(r["method"] for r in results):
        for task in dict.fromkeys(r["task"] for r in results):
            own = [r for r in results if (r["method"], r["task"]) == (method, task)]
            if not own:
                continue
            mean, error = mean_and_error([r["accuracy"] for r in own])
            rows.append(
                {
                    "method": method,
                    "task": task,
                    "mean": mean,
                    "error": error,
                    "accuracies": {r["seed"]: r["accuracy"] for r in own},
                    "learning_rates": {r["seed"]: r["learning_rate"] for r in own},
                    "selection": {r["seed"]: r["selection"] for r in own},
                    "grid_size": own[0]["grid_size"],
                    "num_factors": [r["num_factors"] for r in own],
                    "factor_file_bytes": [r["factor_file_bytes"] for r in own],
                    "architectures": [r["search"]["best"] for r in own if r["search"]],
                }
            )
    return rows


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
    print_table(console, comparison_table(results, task_names(config)))
    out = a.out or Path(f"benchmarks/results/compare_{a.which}.json")
    record = {
        "command": f"python -m benchmarks.compare --which {a.which}"
        + "".join(
            f" --{name} {getattr(a, name)}"
            for name in ("weights", "tasks", "methods", "seeds", "epochs", "image_size")
            if getattr(a, name)
        ),
        "weights_sha256": results[0]["settings"]["weights_sha256"],
        "seconds": sum(r["seconds"]["cell"] for r in results),
        "rows": summarise(results),
        "environments": [
            json.loads(text)
            for text in dict.fromkeys(json.dumps(r["environment"], sort_keys=True) for r in results)
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
