"""Cells of a sweep as a committed result that later runs add to.

`cells` has one entry for each method, task and seed, `rows` the mean of each method and task with
its standard error over the seeds, `commands` what was run, `seconds` the time of all of that. A run
replaces its own cells in an existing file and leaves the others.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.common import write_json
from fact_jax.report.averages import stat
from fact_jax.sweep.result import Result

SAME = ("weights_sha256", "epochs", "image_size")  # what all cells of a file have in common
_KEPT = (
    "method",
    "task",
    "seed",
    "accuracy",
    "learning_rate",
    "selection",
    "grid_size",
    "num_factors",
    "factor_file_bytes",
)


def add_changes(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options that change settings of a config; lists have commas."""
    for name in names:
        parser.add_argument(f"--{name}", type=int if name in ("epochs", "image_size") else str)


def change(config: ConfigDict, args: argparse.Namespace, *names: str) -> str:
    """Sets what was given in the config, and returns it as words of a command."""
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    for name, value in given.items():
        many = name in ("shots", "seeds")
        config[name] = tuple(map(int, value.split(","))) if many else value
    return "".join(f" --{name} {value}" for name, value in given.items())


def cell_of(result: Result, environment: int) -> dict[str, Any]:
    """The entries of a result that are kept; `environment` is its place in the record's list."""
    cell = {name: getattr(result, name) for name in _KEPT}
    if result.search:
        cell["architecture"] = result.search["best"]
        cell["architectures_tried"] = result.kind.architectures
    return {**cell, "environment": environment}


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and task, in the order of their first cells."""
    rows = []
    for method in dict.fromkeys(c["method"] for c in cells):
        for task in dict.fromkeys(c["task"] for c in cells):
            group = [c for c in cells if (c["method"], c["task"]) == (method, task)]
            if not group:
                continue
            mean, error, _ = stat([c["accuracy"] for c in group])
            sizes = {
                name: stat([c[name] for c in group]).mean
                for name in ("num_factors", "factor_file_bytes")
            }
            row = {"method": method, "task": task, "mean": mean, "error": error}
            rows.append({**row, "seeds": len(group), "grid_size": group[0]["grid_size"], **sizes})
    return rows


def write(path: Path, command: str, results: list[Result]) -> dict[str, Any]:
    """Adds a sweep's results to the record at `path`, or begins one; gives the record.

    SystemExit, and nothing is written, if what is there was made with other weights or settings.
    """
    settings = {name: results[0].settings[name] for name in SAME}
    old = json.loads(path.read_text()) if path.exists() else {}
    if old and old["settings"] != settings:
        raise SystemExit(
            f"{path} has results of {old['settings']}, these are of {settings}. Choose another "
            "file with --out; the results themselves are in --workdir."
        )
    environments = old.get("environments", [])
    cells = {(c["method"], c["task"], c["seed"]): c for c in old.get("cells", [])}
    for result in results:
        if result.environment not in environments:
            environments.append(result.environment)
        at = environments.index(result.environment)
        cells[result.method, result.task, result.seed] = cell_of(result, at)
    together = sorted(cells.values(), key=lambda c: c["seed"])
    record = {
        "commands": list(dict.fromkeys([*old.get("commands", []), command])),
        "settings": settings,
        "seconds": old.get("seconds", 0) + sum(r.seconds["cell"] for r in results),
        "rows": summarise(together),
        "cells": together,
        "environments": environments,
    }
    write_json(path, record)
    return record
