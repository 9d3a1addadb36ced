"""Figures with a panel per task: learning curves, and accuracy on validation by setting."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from fact_jax.report.averages import stat
from fact_jax.report.blocks import Figure
from fact_jax.report.lines import Line, LineFigure, Point, line_look
from fact_jax.report.measures import MEASURES
from fact_jax.report.sections import Section, short_name
from fact_jax.report.study import System
from fact_jax.sweep.result import Result, candidate_settings
from fact_jax.sweep.settings import GRID

_MOST_POINTS = 60  # of a curve
_Curve = Callable[[Sequence[Result]], list[Point]]  # of the results of all seeds


def _panels(
    systems: Sequence[System], section: Section, curve: _Curve, marker: bool = True
) -> dict[str, dict[str, Line]]:
    """The lines of each task that has some, by the system's label."""
    curves: dict[str, dict[str, Line]] = defaultdict(dict)
    for task in section.tasks:
        for system in systems:
            if points := curve([r for r in system.results if r.task == task]):
                line = Line(points, line_look(system.style, marker))
                curves[short_name(task)][system.label] = line
    return curves


def _figure(
    name: str, curves: dict[str, dict[str, Line]], labels: tuple[str, str], log: str, caption: str
) -> list[Figure]:
    """The figure of these lines; none without lines."""
    if not curves:
        return []
    entries = {label: line.look for by_label in curves.values() for label, line in by_label.items()}
    panels = {title: list(by_label.values()) for title, by_label in curves.items()}
    drawing = LineFigure(panels, labels, entries, log)
    alt = f"{labels[1].capitalize()} against {labels[0]}, a panel a task, a line a method."
    return [Figure(name, drawing.wide(), alt, caption, drawing.narrow())]


def _by_epoch(results: Sequence[Result], key: str) -> list[Point]:
    """Mean over the seeds by epoch from 1, if every seed has a finite value."""
    points = []
    for epoch, values in enumerate(zip(*(getattr(r, key) or () for r in results), strict=False)):
        if all(v is not None and math.isfinite(v) for v in values):
            points.append(Point(epoch + 1.0, stat(values).mean))
    step = max(1, -(-len(points) // _MOST_POINTS))
    return points[::step] + (points[-1:] if step > 1 and (len(points) - 1) % step else [])


def _measured(results: Sequence[Result]) -> list[Point]:
    points = _by_epoch(results, "test_accuracies")
    return points if len(points) > 1 else []


def learning_curves(systems: Sequence[System], section: Section) -> list[Figure]:
    """Figures by epoch: training loss and, if it was measured more than once, the measure on
    test."""
    losses = _panels(systems, section, partial(_by_epoch, key="losses"), marker=False)
    tests = _panels(systems, section, _measured)
    fallen = (
        "Training loss by epoch, mean over the seeds: a line that still falls at its end would "
        "gain from more epochs."
    )
    risen = (
        f"The {section.measure} on test where it was measured on the way, mean over the seeds: a "
        "line that falls towards its end has trained too long. With protocol `val` nothing was "
        "chosen by it."
    )
    return [
        *_figure(f"{section.name}-loss", losses, ("epoch", "training loss"), "y", fallen),
        *_figure(
            f"{section.name}-test", tests, ("epoch", f"{section.measure} on test, %"), "", risen
        ),
    ]


def _profile(results: Sequence[Result], setting: str) -> list[Point]:
    """Validation accuracy by a setting's value: the mean over the seeds.

    If other settings vary as well, the best over them counts.
    """
    by_value: dict[float, list[float]] = defaultdict(list)
    for result in results:
        best: dict[float, float] = {}
        for label, accuracy in result.selection.items():
            settings = candidate_settings(label)
            if setting in settings and accuracy is not None:
                value = settings[setting]
                best[value] = max(accuracy, best.get(value, -math.inf))
        for value, accuracy in best.items():
            by_value[value].append(accuracy)
    points = [Point(value, stat(v).mean) for value, v in sorted(by_value.items())]
    return points if len(points) > 1 else []


def _chosen_by(systems: Sequence[System], section: Section) -> str:
    """The measures that candidates of these tasks were chosen by, in words."""
    results = [r for s in systems for r in s.results if r.task in section.tasks]
    kinds = sorted({r.label_precision is not None for r in results})
    named = dict.fromkeys(str(r.settings.get("select_by") or "") for r in results)
    default = " or ".join("mAP" if several else "accuracy" for several in kinds)
    words = [MEASURES[name][0] if name in MEASURES else default for name in named] or [default]
    return " or ".join(dict.fromkeys(words))


def selection_curves(systems: Sequence[System], section: Section) -> list[Figure]:
    """Figures of accuracy on validation data against scale, learning rate and so on, each if it was
    chosen."""
    figures, measure = [], _chosen_by(systems, section)
    for setting in GRID.values():
        words = setting.replace("_", " ")
        caption = (
            f"The {measure} on **validation** data against the {words} that it was chosen by, mean "
            "over the seeds: a line whose highest point is at an end wants a wider grid. Where "
            "other settings were searched, too, it is the best of them at each value."
        )
        name, labels = (
            f"{section.name}-{words.replace(' ', '-')}",
            (words, f"{measure} on validation, %"),
        )
        lines = _panels(systems, section, partial(_profile, setting=setting))
        figures += _figure(name, lines, labels, "x", caption)
    return figures
