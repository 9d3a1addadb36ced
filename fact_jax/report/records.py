"""The stored results of sweeps: reads and checks them, and makes tables for other programs."""

import csv
import functools
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, TypeVar

from etils import epath

from fact_jax.command_line import command
from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.files.schema import check_type
from fact_jax.sweep.plan import OF_FILES, task_names
from fact_jax.sweep.resolution import split_names
from fact_jax.sweep.result import Result, StoredFailure, read_stored
from fact_jax.sweep.settings import COLUMNS, GRID, RUN_SETTINGS
from fact_jax.sweep.store import absolute
from fact_jax.text import csv_field, printable_line

_Content = TypeVar("_Content")
Refuse = Callable[[str], None]
_LONGEST_LIST = 10_000  # of a config
_MOST_CELLS = 100_000

MEASURES = ("balanced_accuracy", "macro_f1", "auroc", "ece", "map", "exact")
# results.csv holds only what a killed and resumed sweep gives again: no times, no versions.
_PLAIN = (
    *("cell", "task", "group", "method", "seed", "protocol", "variant", "accuracy"),
    *("accuracy_last_epoch", "scale", "learning_rate", "weight_decay", "grid_size", "num_factors"),
    *("num_head", "factor_file_bytes", "num_train", "num_test"),
)
_SETTINGS = (*COLUMNS, "weights_sha256")
_DATA = {"data_builder": "builder", "data_version": "used_version", "data_mock": "mock"}
CSV_COLUMNS = (*_PLAIN, *_SETTINGS, *_DATA, "method_settings")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def read_results(*workdirs: str | os.PathLike[str], refuse: Refuse = _warn) -> list[Result]:
    """Every finished cell of the work directories (or buckets), sorted by cell.

    A cell of two directories gives two results, with `workdir` as it was given. A file that is no
    result is left out: ``refuse(text)`` gets its name and the reason, and by default warns. Raises
    UserError for a directory without a folder `results`.
    """
    for workdir in workdirs:
        if not isinstance(workdir, str | os.PathLike):
            what = type(workdir).__name__
            raise UserError(f"Expected work directories or results, found a {what}.")
    results = []
    for name, folder in _folders(workdirs, "results").items():
        if not folder.exists():
            raise UserError(
                f"{name} is no work directory of a sweep: it has no folder 'results'. Give the "
                f"--workdir of `{command('vtab')}` or `{command('fewshot')}`."
            )
        for path in _json_files(folder):
            result = _read(path, functools.partial(Result.from_json, workdir=name), refuse)
            if result is not None:
                results.append(result)
    order = {name: i for i, name in enumerate(os.fspath(w) for w in workdirs)}
    return sorted(results, key=lambda r: (r.cell, order[r.workdir]))


def read_failures(
    *workdirs: str | os.PathLike[str], refuse: Refuse = _warn
) -> list[dict[str, Any]]:
    """The failures of cells without a result: DIR/failures/<cell>.json and `workdir`."""
    failures = []
    for name, folder in _folders(workdirs, "failures").items():
        for path in _json_files(folder) if folder.exists() else ():
            if not (folder.parent / "results" / path.name).exists():
                content = _read(path, _read_failure, refuse)
                failures.append({**(content or {}), "cell": path.stem, "workdir": name})
    return failures


def _read_failure(path: epath.Path) -> dict[str, Any]:
    content: dict[str, Any] = read_stored(path)
    check_type(content, StoredFailure)
    return content


class StoredConfig(TypedDict, total=False):
    """The entries of DIR/config.json that reports read; the methods' settings are beside them."""

    tasks: str | list[str]
    methods: str | list[str]
    seeds: list[int]
    shots: list[int]


def read_config(workdir: str | os.PathLike[str], refuse: Refuse = _warn) -> dict[str, Any] | None:
    """The config of the last run in a work directory; None if there is no readable one."""
    path = absolute(workdir) / "config.json"
    return _read(path, _read_config, refuse) if path.exists() else None


def _read_config(path: epath.Path) -> dict[str, Any]:
    """Raises ValueError for a config without the lists that a plan is made of."""
    content: dict[str, Any] = read_stored(path)
    check_type(content, StoredConfig)
    sizes = [len(content.get(key, ())) for key in ("tasks", "methods", "seeds", "shots")]
    if max(sizes) > _LONGEST_LIST:
        raise ValueError(f"a list has {max(sizes):,} entries, expected at most {_LONGEST_LIST:,}")
    methods, tasks, seeds = planned(content)
    if len(methods) * len(tasks) * len(seeds) > _MOST_CELLS:
        raise ValueError(f"it plans more than {_MOST_CELLS:,} cells")
    return content


def planned(config: dict[str, Any]) -> tuple[list[str], list[str], list[int]]:
    """Methods, tasks and seeds of a stored config. Raises UserError for an unknown task."""
    tasks = task_names(config["tasks"], config.get("shots", ())) if config.get("tasks") else []
    seeds = list(dict.fromkeys(config.get("seeds", ())))
    return split_names(config.get("methods", "")), tasks, seeds


def _folders(workdirs: tuple[str | os.PathLike[str], ...], folder: str) -> dict[str, epath.Path]:
    """A folder of each work directory, by the directory's name as given; a directory that is given
    under two names counts once."""
    names: dict[epath.Path, str] = {}
    for workdir in workdirs:
        names.setdefault(absolute(workdir), os.fspath(workdir))
    return {name: path / folder for path, name in names.items()}


def _json_files(folder: epath.Path) -> list[epath.Path]:
    try:
        every = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}).") from error
    return sorted(p for p in every if p.suffix == ".json" and not p.name.startswith("."))


def _read(
    path: epath.Path, read: Callable[[epath.Path], _Content], refuse: Refuse
) -> _Content | None:
    """Reads a file with `read`; if that fails, calls `refuse` and returns None."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split()).rstrip(".")[:300]
        if not text.startswith(str(path)):
            text = f"{path} is no record of a sweep: {text}"
        refuse(
            f"{text}. It is left out. Remove it and run the sweep again, which runs only what is "
            "missing."
        )
        return None


def method_settings(result: Result) -> dict[str, Any]:
    """The settings of a result that only its method has: rank, sites, number of prompts."""
    other = {*RUN_SETTINGS, *GRID, "task", "method", "seed", "together", *OF_FILES}
    return {k: v for k, v in result.settings.items() if k not in other}


def _row(result: Result) -> dict[str, Any]:
    return {
        **{k: getattr(result, k) for k in _PLAIN},
        **{k: result.settings.get(k) for k in _SETTINGS},
        **{k: result.data.get(source) for k, source in _DATA.items()},
        "method_settings": json.dumps(method_settings(result), sort_keys=True),
        **{k: (result.measures or {}).get(k) for k in MEASURES},
    }


def csv_text(results: list[Result]) -> str:
    """CSV with one line per cell, sorted by cell, and floats in full. A sweep that was killed and
    resumed gives the same bytes. Several work directories add `workdir` as the last column."""
    several = len({r.workdir for r in results}) > 1
    measures = MEASURES if any(r.measures for r in results) else ()  # earlier versions had none
    columns = [*CSV_COLUMNS, *measures, *(["workdir"] if several else [])]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for result in sorted(results, key=lambda r: r.cell):
        row = {**_row(result), "workdir": result.workdir}
        writer.writerow({k: csv_field(_shown(row[k])) for k in columns})
    return text.getvalue()


def _shown(value: Any) -> Any:
    """A value whose text, if it is one, has no control characters."""
    return printable_line(value) if isinstance(value, str) else value


Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Sequence[Result]


def _results(source: Source, more: Sequence[str | os.PathLike[str]]) -> list[Result]:
    """The given results, and the results of the given work directories."""
    sources: list[Any] = [source]
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike):
        sources = list(source)
    results = [item for item in sources if isinstance(item, Result)]
    paths = [item for item in [*sources, *more] if not isinstance(item, Result)]
    return [*results, *(read_results(*paths) if paths else ())]


def results_frame(results: Source, *more: str | os.PathLike[str]) -> Any:
    """A pandas DataFrame, one row per cell: results.csv's columns, `workdir`, times in seconds,
    versions and device.

    Args:
      results: results of `read_results`, or one or several work directories.
      *more: further work directories.
    """
    require("results_frame", "report", "pandas")
    import pandas as pd

    rows = []
    for result in _results(results, more):
        rows.append(
            {
                **_row(result),
                "workdir": result.workdir,
                "epochs_run": result.epochs_run,
                **{f"seconds_{k}": v for k, v in result.seconds.items()},
                **{k.replace("-", "_"): v for k, v in result.environment.items()},
            }
        )
    return pd.DataFrame(rows)


def curves_frame(results: Source, *more: str | os.PathLike[str]) -> Any:
    """A long pandas DataFrame, one row per epoch (counted from 1) of a cell: training loss (mean
    over the epoch) and accuracy on test in %, NaN where it was not measured. Arguments as for
    `results_frame`."""
    require("curves_frame", "report", "pandas")
    import pandas as pd

    rows = [
        {
            **{k: getattr(result, k) for k in ("workdir", "cell", "task", "method", "seed")},
            "epoch": epoch,
            "loss": loss,
            "test_accuracy": accuracy,
        }
        for result in _results(results, more)
        for epoch, (loss, accuracy) in enumerate(
            zip(result.losses or (), result.test_accuracies or (), strict=True), 1
        )
    ]
    columns = ["workdir", "cell", "task", "method", "seed", "epoch", "loss", "test_accuracy"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"loss": float, "test_accuracy": float})
