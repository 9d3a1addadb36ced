"""The tables of docs/comparison.md, from the committed results of all methods.

    python -m benchmarks.comparison

Accuracy on test in %, mean ± standard error over the seeds. The mean of several tasks is taken for
each seed first, so that its error is that of the mean.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import NAMES, numbers, write_tables
from fact_jax.report.averages import average, stat

SEEDS = (0, 1, 2)
RESULTS, PAGE = Path("benchmarks/results"), Path("docs/comparison.md")
# The mark in the page, its record, and the columns: title and tasks that it is the mean of.
TABLES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "quickstart": (
        "compare_quickstart.json",
        {
            "digits": ("digits",),
            "fashion": ("fashion",),
            "location": ("location",),
            "mean": ("digits", "fashion", "location"),
        },
    ),
    "fewshot": (
        "fewshot_quickstart.json",
        {
            f"{name}, {shots}": tuple(f"{task}_{shots}shot" for task in tasks)
            for name, tasks in {
                "digits and fashion": ("digits", "fashion"),
                "location": ("location",),
            }.items()
            for shots in (1, 4, 16)
        },
    ),
    "dinov2": (
        "compare_dinov2.json",
        {"digits": ("digits",), "location": ("location",), "mean": ("digits", "location")},
    ),
}


def accuracy(cells: list[dict[str, Any]], tasks: tuple[str, ...]) -> tuple[float, float]:
    """Mean over tasks and seeds of one method's cells, and its standard error over the seeds."""
    accuracies = {(c["task"], c["seed"]): c["accuracy"] for c in cells}
    if absent := {(t, seed) for t in tasks for seed in SEEDS} - accuracies.keys():
        raise SystemExit(f"{cells[0]['method']}: no result of task and seed {min(absent)}.")
    value = average({t: {seed: accuracies[t, seed] for seed in SEEDS} for t in tasks}, [tasks])
    assert value is not None
    assert value.error is not None
    return value.mean, value.error


def table_of(record: dict[str, Any], columns: dict[str, tuple[str, ...]]) -> str:
    """A Markdown table, the best by its last column first."""
    methods = {m: [c for c in record["cells"] if c["method"] == m] for m in NAMES}
    rows = {
        method: [accuracy(cells, tasks) for tasks in columns.values()]
        for method, cells in methods.items()
        if cells
    }
    lines = ["| " + " | ".join(["method", "numbers", *columns]) + " |"]
    lines += ["| --- | --: |" + " --: |" * len(columns)]
    for method in sorted(rows, key=lambda m: -rows[m][-1][0]):
        size = stat([c["num_factors"] for c in methods[method]]).mean
        texts = [f"{mean:.1f} ± {error:.1f}" for mean, error in rows[method]]
        lines.append("| " + " | ".join([NAMES[method], numbers(size), *texts]) + " |")
    return "".join(f"{line}\n" for line in lines)


def tables() -> dict[str, str]:
    """The Markdown table of each mark in the page."""
    return {
        name: table_of(json.loads((RESULTS / file).read_text()), columns)
        for name, (file, columns) in TABLES.items()
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_tables(PAGE, tables())


if __name__ == "__main__":
    main()
