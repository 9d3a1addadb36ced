"""Figures with a small panel a task: learning curves, and what the selection saw."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fact_jax.report.blocks import Figure
from fact_jax.report.charts import line_handle
from fact_jax.report.figures import legend, new_figure, tidy
from fact_jax.report.palette import SOFT
from fact_jax.report.records import Result
from fact_jax.report.sections import short_name
from fact_jax.report.study import Study
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
    """A panel a task with `curve(results of the seeds)` of each system; None if all are empty."""
    from matplotlib.ticker import MaxNLocator

    curves = {
        task: {s: c for s in study.systems
               if (c := curve([r for r in s.results if r["task"] == task]))}
        for task in tasks
    }  # fmt: skip
    curves = {task: own for task, own in curves.items() if own}
    if not curves:
        return None
    columns = min(5 if len(curves) > 8 else 3, len(curves))
    lines = -(-len(curves) // columns)
    systems = [s for s in study.systems if any(s in own for own in curves.values())]
    width = {5: 9.6, 3: 9.2, 2: 7.2}.get(columns, 5.0)
    per_line = max(1, int(width / 1.4))
    head = 0.3 + 0.2 * -(-len(systems) // per_line)
    figure = new_figure(
        width, (1.55 if columns > 3 else 2.1 if columns > 1 else 2.6) * lines + head + 0.3
    )
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axis, (task, own) in zip(axes, curves.items(), strict=False):
        tidy(axis, short_name(task))
        for system, points in own.items():
            look = system.style._asdict()
            if not markers:
                look.pop("marker")
            axis.plot(*zip(*points, strict=True), **look, linewidth=1.3, markersize=4)
        if xlabel == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if "x" in log and all(x > 0 for points in own.values() for x, _ in points):
            axis.set_xscale("log")
            places = sorted({x for points in own.values() for x, _ in points})
            if len(places) <= 5:
                axis.set_xticks(places, [f"{x:g}" for x in places], fontsize=8)
        heights = [y for points in own.values() for _, y in points]
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


def _mean_of_seeds(lists: Sequence[Sequence[float | None]]) -> Curve:
    """Mean by epoch from 1, where every seed has a finite value; thinned to 60 points."""
    length = min(map(len, lists), default=0)
    points = []
    for epoch in range(length):
        values = [own[epoch] for own in lists]
        if all(v is not None and math.isfinite(v) for v in values):
            points.append((epoch + 1.0, statistics.fmean(v for v in values if v is not None)))
    step = max(1, -(-len(points) // 60))
    return points[::step] + (points[-1:] if step > 1 and (len(points) - 1) % step else [])


def learning_curves(study: Study, name: str, tasks: Sequence[str]) -> list[Figure]:
    """Training loss and, where it was measured more than once, accuracy on test, by epoch."""
    words = "mean over the seeds, by epoch; a panel a task."
    figures = []
    loss = _panels(
        study, tasks, lambda own: _mean_of_seeds([r.get("losses") or () for r in own]),
        "epoch", "training loss", log="y",
    )  # fmt: skip
    if loss is not None:
        alt = "Learning curves: training loss by epoch, a panel a task, a line a method."
        figures.append(Figure(f"{name}-loss", loss, alt, f"Training loss, {words}"))

    def measured(own: Sequence[Result]) -> Curve:
        points = _mean_of_seeds([r.get("test_accuracies") or () for r in own])
        return points if len(points) > 1 else []

    accuracy = _panels(study, tasks, measured, "epoch", "accuracy on test, %", markers=True)
    if accuracy is not None:
        figures.append(
            Figure(
                f"{name}-test", accuracy, "Accuracy on test by epoch, a panel a task, a line a "
                "method.", f"Accuracy on test where it was measured on the way, {words} With "
                "protocol `val` nothing was chosen by it.",
            )
        )  # fmt: skip
    return figures


def _profile(own: Sequence[Result], setting: str) -> Curve:
    """Validation accuracy by a setting's value: the mean over the seeds.

    Where other settings vary, too, the best over them counts.
    """
    by_value: dict[float, list[float]] = defaultdict(list)
    for result in own:
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
    """Accuracy on validation data against scale, learning rate and weight decay, where these were
    chosen."""
    figures = []
    for setting in ("scale", "learning_rate", "weight_decay"):
        words = setting.replace("_", " ")
        figure = _panels(
            study, tasks, lambda own, s=setting: _profile(own, s),  # type: ignore[misc]
            words, "accuracy on validation, %", log="x", markers=True,
        )  # fmt: skip
        if figure is not None:
            figures.append(
                Figure(
                    f"{name}-{setting.replace('_', '-')}", figure,
                    f"Accuracy on validation data against {words}, a panel a task.",
                    f"Accuracy on **validation** data against the {words} that it was chosen by, "
                    "mean over the seeds; where other settings were searched, too, the best of "
                    "them at each value.",
                )
            )  # fmt: skip
    return figures
