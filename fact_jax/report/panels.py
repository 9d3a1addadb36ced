"""Figures with a small panel per task: learning curves, and accuracy on validation by setting."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fact_jax.report.blocks import Figure
from fact_jax.report.charts import line_handle
from fact_jax.report.figures import legend, new_figure, tidy
from fact_jax.report.palette import SOFT
from fact_jax.report.records import Result
from fact_jax.report.sections import short_name
from fact_jax.report.study import Study, System
from fact_jax.sweep.result import candidate_settings

Curve = list[tuple[float, float]]  # (x, y)


def _panels(
    study: Study,
    tasks: Sequence[str],
    curve: Callable[[Sequence[Result]], Curve],
    xlabel: str,
    ylabel: str,
    *,
    log: str = "",
    markers: bool = False,
) -> Any | None:
    """Figure with a panel per task and ``curve(results of the seeds)`` of each system; None if all
    are empty."""
    from matplotlib.ticker import MaxNLocator

    curves: dict[str, dict[System, Curve]] = defaultdict(dict)
    for task, system in itertools.product(tasks, study.systems):
        if points := curve([r for r in system.results if r["task"] == task]):
            curves[task][system] = points
    if not curves:
        return None
    columns = min(5 if len(curves) > 8 else 3, len(curves))
    lines = -(-len(curves) // columns)
    systems = [s for s in study.systems if any(s in by_system for by_system in curves.values())]
    width = {5: 9.6, 3: 9.2, 2: 7.2}.get(columns, 5.0)
    per_line = max(1, int(width / 1.4))
    head = 0.3 + 0.2 * -(-len(systems) // per_line)
    figure = new_figure(
        width, (1.55 if columns > 3 else 2.1 if columns > 1 else 2.6) * lines + head + 0.3
    )
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axis, (task, by_system) in zip(axes, curves.items(), strict=False):
        tidy(axis, short_name(task))
        for system, points in by_system.items():
            look = system.style._asdict()
            if not markers:
                look.pop("marker")
            axis.plot(*zip(*points, strict=True), **look, linewidth=1.3, markersize=4)
        if xlabel == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        places = sorted({x for points in by_system.values() for x, _ in points})
        if "x" in log and places[0] > 0:
            axis.set_xscale("log")
            if len(places) <= 5:
                axis.set_xticks(places, [f"{x:g}" for x in places], fontsize=8)
        heights = [y for points in by_system.values() for _, y in points]
        if "y" in log and 0 < 20 * min(heights) < max(heights):
            axis.set_yscale("log")
        axis.tick_params(which="minor", length=0, labelleft=False, labelbottom=False)
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(curves) - columns) : len(curves)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=9.5, color=SOFT)
    figure.supylabel(ylabel, fontsize=9.5, color=SOFT)
    handles = [line_handle(s) for s in systems]
    for handle in () if markers else handles:
        handle.set_marker("")
    legend(figure, handles, per_line)
    return figure


def _by_epoch(results: Sequence[Result], key: str) -> Curve:
    """Mean over the seeds by epoch from 1, if every seed has a finite value; at most 60 points."""
    points = []
    for epoch, values in enumerate(zip(*(r.get(key) or () for r in results), strict=False)):
        if all(v is not None and math.isfinite(v) for v in values):
            points.append((epoch + 1.0, statistics.fmean(v for v in values if v is not None)))
    step = max(1, -(-len(points) // 60))
    return points[::step] + (points[-1:] if step > 1 and (len(points) - 1) % step else [])


def learning_curves(study: Study, name: str, tasks: Sequence[str]) -> list[Figure]:
    """Figures by epoch: training loss and, if it was measured more than once, accuracy on test."""
    words = "mean over the seeds, by epoch; a panel a task."
    figures = []
    losses = partial(_by_epoch, key="losses")
    loss = _panels(study, tasks, losses, "epoch", "training loss", log="y")
    if loss is not None:
        alt = "Learning curves: training loss by epoch, a panel a task, a line a method."
        figures.append(Figure(f"{name}-loss", loss, alt, f"Training loss, {words}"))

    def measured(results: Sequence[Result]) -> Curve:
        points = _by_epoch(results, "test_accuracies")
        return points if len(points) > 1 else []

    accuracy = _panels(study, tasks, measured, "epoch", "accuracy on test, %", markers=True)
    if accuracy is not None:
        alt = "Accuracy on test by epoch, a panel a task, a line a method."
        caption = f"Accuracy on test where it was measured on the way, {words} "
        caption += "With protocol `val` nothing was chosen by it."
        figures.append(Figure(f"{name}-test", accuracy, alt, caption))
    return figures


def _profile(results: Sequence[Result], setting: str) -> Curve:
    """Validation accuracy by a setting's value: the mean over the seeds.

    If other settings vary as well, the best over them counts.
    """
    by_value: dict[float, list[float]] = defaultdict(list)
    for result in results:
        best: dict[float, float] = {}
        for label, accuracy in (result.get("selection") or {}).items():
            settings = candidate_settings(label)
            if setting in settings and accuracy is not None:
                value = settings[setting]
                best[value] = max(accuracy, best.get(value, -math.inf))
        for value, accuracy in best.items():
            by_value[value].append(accuracy)
    points = [(value, statistics.fmean(v)) for value, v in sorted(by_value.items())]
    return points if len(points) > 1 else []


def selection_curves(study: Study, name: str, tasks: Sequence[str]) -> list[Figure]:
    """Figures of accuracy on validation data against scale, learning rate and weight decay, each if
    it was chosen."""
    figures = []
    for setting in ("scale", "learning_rate", "weight_decay"):
        words = setting.replace("_", " ")
        profile, ylabel = partial(_profile, setting=setting), "accuracy on validation, %"
        figure = _panels(study, tasks, profile, words, ylabel, log="x", markers=True)
        if figure is not None:
            alt = f"Accuracy on validation data against {words}, a panel a task."
            caption = (
                f"Accuracy on **validation** data against the {words} that it was chosen by, mean "
                "over the seeds; where other settings were searched, too, the best of them at each "
                "value."
            )
            figures.append(Figure(f"{name}-{setting.replace('_', '-')}", figure, alt, caption))
    return figures
