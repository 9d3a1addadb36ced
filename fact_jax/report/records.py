"""The results of sweeps as they lie on disk: read, checked, and as tables for other programs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from typing import Any

from etils import epath

from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.sweep.plan import RUN_SETTINGS
from fact_jax.sweep.store import absolute

Result = dict[str, Any]
_NEEDED: dict[str, Any] = {
    "cell": str,
    "task": str,
    "method": str,
    "seed": int,
    "accuracy": (int, float),
}

# results.csv holds what a sweep that was killed and resumed gives again: no times, no versions.
_PLAIN = (
    "cell", "task", "group", "method", "seed", "protocol", "variant", "accuracy",
    "accuracy_last_epoch", "scale", "learning_rate", "weight_decay", "grid_size", "num_factors",
    "num_head", "factor_file_bytes", "num_train", "num_test",
)  # fmt: skip
_SETTINGS = (
    "epochs", "warmup_epochs", "batch_size", "image_size", "dtype", "normalisation", "jpeg_quality",
    "optimizer", "dropout_rate", "drop_path_rate", "augment", "train_limit", "eval_limit",
    "mock_data", "weights_sha256",
)  # fmt: skip
_DATA = {"data_builder": "builder", "data_version": "used_version", "data_mock": "mock"}
CSV_COLUMNS = (*_PLAIN, *_SETTINGS, *_DATA, "method_settings")


def read_results(*workdirs: str | os.PathLike) -> list[Result]:
    """Every finished cell of the work directories (or buckets), sorted by cell.

    Each result is the content of DIR/results/<cell>.json and `workdir`, as it was given. The same
    cell of two directories is there twice. Raises UserError for a directory without a folder
    `results`, and for a file that is no result.
    """
    results = []
    for name, folder in _folders(workdirs, "results").items():
        if not folder.exists():
            raise UserError(
                f"{name} is no work directory of a sweep: it has no folder 'results'. Give the "
                f"--workdir of `{command('vtab')}` or `{command('fewshot')}`."
            )
        results += [{**_checked(path), "workdir": name} for path in _json_files(folder)]
    order = {name: i for i, name in enumerate(os.fspath(w) for w in workdirs)}
    return sorted(results, key=lambda r: (r["cell"], order[r["workdir"]]))


def read_failures(*workdirs: str | os.PathLike) -> list[dict[str, Any]]:
    """The failures that no result has made good since, DIR/failures/<cell>.json and `workdir`."""
    failures = []
    for name, folder in _folders(workdirs, "failures").items():
        for path in _json_files(folder) if folder.exists() else ():
            if not (folder.parent / "results" / path.name).exists():
                failures.append({"cell": path.stem, **_parsed(path), "workdir": name})
    return failures


def read_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The config of the last run in a work directory; None if there is none."""
    path = absolute(workdir) / "config.json"
    return _parsed(path) if path.exists() else None


def _folders(workdirs: tuple[str | os.PathLike, ...], folder: str) -> dict[str, epath.Path]:
    """By the name as given; the same directory under two names is read once."""
    found: dict[epath.Path, str] = {}
    for workdir in workdirs:
        found.setdefault(absolute(workdir), os.fspath(workdir))
    return {name: path / folder for path, name in found.items()}


def _json_files(folder: epath.Path) -> list[epath.Path]:
    return sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))


def _parsed(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Remove it and run the sweep again: only that "
            "cell is run."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected an object. Remove it.")
    return content


def _checked(path: epath.Path) -> Result:
    result = _parsed(path)
    for key, kind in _NEEDED.items():
        value: Any = result.get(key)
        if not isinstance(value, kind) or (key == "accuracy" and not math.isfinite(value)):
            raise UserError(
                f"{path} is no result of a sweep: {key} is {value!r}. Remove it and run the sweep "
                "again: only that cell is run."
            )
    return result


def method_settings(result: Result) -> dict[str, Any]:
    """What is the method's own in the settings of a result: rank, sites, number of prompts."""
    other = {*RUN_SETTINGS, "task", "method", "seed", "weights_sha256", "scales", "learning_rates",
             "weight_decays"}  # fmt: skip
    return {k: v for k, v in result.get("settings", {}).items() if k not in other}


def _row(result: Result) -> dict[str, Any]:
    settings, data = result.get("settings", {}), result.get("data") or {}
    return {
        **{k: result.get(k) for k in _PLAIN},
        **{k: settings.get(k) for k in _SETTINGS},
        **{k: data.get(source) for k, source in _DATA.items()},
        "method_settings": json.dumps(method_settings(result), sort_keys=True),
    }


def csv_text(results: list[Result]) -> str:
    """One line a cell, sorted by cell, floats in full; the same bytes for a sweep that was killed
    and resumed. With results of several work directories `workdir` is the last column."""
    several = len({r.get("workdir") for r in results}) > 1
    columns = [*CSV_COLUMNS, *(["workdir"] if several else [])]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for result in sorted(results, key=lambda r: r["cell"]):
        row = {**_row(result), "workdir": result.get("workdir")}
        writer.writerow({k: row[k] for k in columns})
    return text.getvalue()


def results_frame(results: list[Result]) -> Any:
    """A pandas DataFrame, one row a cell: results.csv's columns, `workdir`, times in seconds,
    versions and device."""
    require("results_frame", "report", "pandas")
    import pandas as pd

    rows = []
    for result in results:
        seconds, environment = result.get("seconds") or {}, result.get("environment") or {}
        rows.append(
            {
                **_row(result),
                "workdir": result.get("workdir"),
                "epochs_run": result.get("epochs_run"),
                **{f"seconds_{k}": v for k, v in seconds.items()},
                **{k.replace("-", "_"): v for k, v in environment.items()},
            }
        )
    return pd.DataFrame(rows)


def curves_frame(results: list[Result]) -> Any:
    """A long pandas DataFrame, one row an epoch (counted from 1) of a cell: training loss (mean
    over the epoch) and accuracy on test in %, NaN where it was not measured."""
    require("curves_frame", "report", "pandas")
    import pandas as pd

    rows = [
        {
            **{k: result.get(k) for k in ("workdir", "cell", "task", "method", "seed")},
            "epoch": epoch,
            "loss": loss,
            "test_accuracy": accuracy,
        }
        for result in results
        for epoch, (loss, accuracy) in enumerate(
            zip(result.get("losses") or (), result.get("test_accuracies") or (), strict=True), 1
        )
    ]
    frame = pd.DataFrame(
        rows, columns=["workdir", "cell", "task", "method", "seed", "epoch", "loss",
                       "test_accuracy"],
    )  # fmt: skip
    return frame.astype({"loss": float, "test_accuracy": float})
