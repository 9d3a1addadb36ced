"""Rows of the tables: the results that belong together, and their labels."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from fact_jax.report.records import method_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.settings import GRID
from fact_jax.sweep.store import absolute

# Settings of a run that tell rows of one method apart where the method's own do not.
_TELLING = (
    *("start_from", "shared", "factor_bits", "head_bits"),
    *("consistency", "start_ranks", "epochs"),
)
_OF_A_CELL = ("seed", "start_sha256")  # differ between the cells of a row
_CHOSEN = (*GRID, *GRID.values())  # may differ between tasks


def start_folder(result: Result) -> str:
    """The folder of the factor files that training went on from; empty if it began anew.

    `round --finish_epochs` trains each file in a work directory of its own, which lies beside the
    file and has a copy of it. The folder is then the one where the rounded files lie.
    """
    if not (start := result.settings.get("start_from")):
        return ""
    folder = PurePath(str(start))
    if folder.parent.name == absolute(result.workdir).name:
        folder = folder.parent.parent
    return str(folder)


def settings_text(result: Result, *left_out: str) -> str:
    """The settings that cells of a row have in common, as text, but for those `left_out`."""
    settings = {k: v for k, v in result.settings.items() if k not in (*_OF_A_CELL, *left_out)}
    if start := start_folder(result):
        settings["start_from"] = start
    return json.dumps(settings, sort_keys=True)


def one_row(a: Sequence[Result], b: Sequence[Result]) -> bool:
    """Whether the results of a method in two work directories are one row.

    Their common tasks must have the same settings. If they have no common task, some settings
    besides the task must be the same; a finish of one file says nothing of other tasks' rates.
    """
    tasks = {r.task for r in a} & {r.task for r in b}
    if tasks:
        one, other = ({settings_text(r) for r in side if r.task in tasks} for side in (a, b))
        return one == other
    finished = all(map(start_folder, (*a, *b)))
    names = ("task", *(_CHOSEN if finished else ()))
    one, other = ({settings_text(r, *names) for r in side} for side in (a, b))
    return bool(one & other)


def row_labels(method: str, rows: Sequence[Result]) -> list[str]:
    """Labels of a method's rows, each given by one of its results.

    They have the settings that differ (rank=4): those of the method, then as many of the run as
    tell all rows apart. Rows that are equal in these have the names of their work directories.
    """
    if len(rows) == 1:
        return [method]
    settings = [{**method_settings(row), **_telling(row)} for row in rows]
    of_method = [k for k in method_settings(rows[0]) if _differ(settings, k)]
    named, labels = of_method, _labels(method, settings, of_method)
    for name in _TELLING:
        if len(set(labels)) < len(labels) and _differ(settings, name):
            named = [*named, name]
            labels = _labels(method, settings, named)
    if not named or len(set(labels)) < len(labels):
        names = [row.workdir for row in rows]
        short = [PurePath(name).name for name in names]
        shown = short if len(set(short)) == len(short) else names
        labels = [f"{method} ({name})" for name in shown]
    return labels


def curve_label(row: Result, rank: float, differing: Sequence[str] = ()) -> str:
    """The label of a row among the curves over the rank, which are equal in all else.

    `differing` are the settings of the method besides its rank that tell its rows apart.

    In the name of a folder that training went on from, R stands for the rank: `small-8` and
    `small-4` are points of one curve, `small-R`.
    """
    settings = {name: value for name, value in _telling(row).items() if name != "epochs"}
    if folder := settings.get("start_from"):
        settings["start_from"] = re.sub(rf"(?<!\d){rank:g}(?!\d)", "R", folder)
    of_method = method_settings(row)
    settings = {**{name: of_method.get(name) for name in differing}, **settings}
    return _labels(row.method, [settings], list(settings))[0]


def _telling(row: Result) -> dict[str, Any]:
    """The settings of a run that a label may have; a folder or a file by its name."""
    settings = {name: row.settings[name] for name in _TELLING if row.settings.get(name)}
    if start := start_folder(row):
        folder = PurePath(start)
        settings["start_from"] = folder.parent.name if folder.name == "factors" else folder.name
    if shared := settings.get("shared"):
        settings["shared"] = PurePath(shared).name
    return settings


def _differ(settings: list[dict[str, Any]], name: str) -> bool:
    return len({json.dumps(row.get(name)) for row in settings}) > 1


def _labels(method: str, settings: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Labels with the settings of these names; those of a run only where they are set."""
    texts = (
        ", ".join(f"{k}={row.get(k)!s:.40}" for k in names if k in row or k not in _TELLING)
        for row in settings
    )
    return [f"{method} ({text})" if text else method for text in texts]
