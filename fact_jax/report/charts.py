"""Figures of averages: accuracy against size, bars by group or task, accuracy against rank."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fact_jax.report.blocks import Figure
from fact_jax.report.figures import figure_text, legend, new_figure, tidy
from fact_jax.report.palette import INK, PAPER, SOFT
from fact_jax.report.sections import (
    Published,
    Section,
    headline,
    published_rows,
    short_name,
    systems_of,
)
from fact_jax.report.statistics import Stat, average
from fact_jax.report.study import Study, System


def line_handle(system: System, **more: Any) -> Any:
    """The entry of a system in a legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], **system.style._asdict(), markersize=5, label=figure_text(system.label), **more
    )


_Points = Sequence[tuple[System, float, Stat]]


def accuracy_against_size(study: Study, section: Section) -> Figure | None:
    """The paper's figure: the headline average against numbers stored for a task, log scale.
    Published rows are hollow. None if no system has all tasks."""
    points = [
        (system, numbers, value)
        for system in study.systems
        if (value := headline(system, section)) is not None
        and (numbers := _numbers(system, section)) is not None
    ]
    if not points:
        return None
    published = published_rows(study) if section.whole else []
    published = [p for p in published if p.params is not None and "group mean" in p.row]
    figures = [_size_figure(points, published, section, size) for size in ((9.2, 4.6), (3.6, 4.2))]
    shown = "; ".join(
        f"{s.label} {n:,.0f} numbers, {v.mean:.{section.digits}f} %" for s, n, v in points
    )
    caption = (
        f"{section.title}: {section.headline}, top-1 on test, against what a task stores; left and "
        f"high is better.{_bars_said([v for _, _, v in points])}"
    )
    if published:
        caption += " Hollow: published rows of the table, which have no error bars."
    alt = f"{section.headline}: {shown}."
    return Figure(f"{section.name}-size", figures[0], alt, caption, figures[1])


def _bars_said(values: Iterable[Stat | None]) -> str:
    """The sentence on error bars, '' if there are none."""
    some = any(v is not None and v.error is not None for v in values)
    return " Error bars: standard error over seeds." if some else ""


def _size_figure(
    points: _Points, published: Sequence[Published], section: Section, size: tuple[float, float]
) -> Any:
    from matplotlib.lines import Line2D

    sizes = [n for _, n, _ in points] + [p.params or 0 for p in published]
    positive = [n for n in sizes if n > 0]
    zero = min(positive, default=1000) / 4  # where a probe, which stores nothing, is drawn
    figure = new_figure(*size)
    axis = figure.subplots()
    tidy(axis)
    for row in published:
        look = row.system.style._replace(linestyle="")._asdict()
        hollow = {"markerfacecolor": PAPER, "markersize": 7, "markeredgewidth": 1.3}
        axis.plot([row.params or zero], [row.row["group mean"]], **look, **hollow)
    for system, numbers, value in points:
        look = system.style._replace(linestyle="")._asdict()
        whiskers = {"capsize": 3 if value.error else 0, "elinewidth": 1.2}
        x, y, error = [numbers or zero], [value.mean], [value.error or 0]
        axis.errorbar(x, y, error, **look, **whiskers, markersize=8, zorder=3)
    wide = size[0] > 5
    _size_axis(axis, zero, sizes, 12 if wide else 4)
    axis.set_ylabel(figure_text(f"{section.headline}, %", 80))
    handles = [line_handle(system) for system, _, _ in points]
    for handle, (system, _, _) in zip(handles, points, strict=True):
        label = figure_text(system.label, 60 if wide else 36)
        handle.set(linestyle="", markersize=6.5, label=label)
    if published:
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 6, "color": SOFT}
        handles.append(Line2D([], [], **dot, markerfacecolor=PAPER, label="published (hollow)"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    legend(figure, handles, 6 if wide else 3 if longest < 9 else 2 if longest < 19 else 1)
    return figure


def _size_axis(axis: Any, zero: float, sizes: Sequence[float], most: int) -> None:
    """Makes a logarithmic axis of stored numbers with at most `most` ticks; 0 is left of a line."""
    from matplotlib.ticker import FuncFormatter

    axis.set_xscale("log")
    zeros = [zero] if any(n == 0 for n in sizes) else []
    if zeros:
        axis.axvline(zero * 2, color=SOFT, linewidth=0.7, linestyle=(0, (2, 3)))
    largest = max((n for n in sizes if n > 0), default=zero)
    low, high = (zero * 2.2 if zeros else zero * 2.5), largest * 1.8
    axis.set_xlim(left=zero / 1.6 if zeros else low, right=high)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(17) for s in steps if low < s * 10.0**e < high]
        if len(ticks) <= most:
            break
    axis.set_xticks([*zeros, *ticks])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x in zeros else _power(x)))
    axis.set_xlabel("numbers trained and stored for a task")


def _power(x: float) -> str:
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if x >= unit:
            return f"{x / unit:g}{word}"
    return f"{x:g}"


def _numbers(system: System, section: Section) -> float | None:
    stored: list[Any] = [r.get("num_factors") for r in system.results if r["task"] in section.tasks]
    return None if not stored or None in stored else statistics.fmean(stored)


def bars(study: Study, section: Section) -> Figure:
    """Figure with a panel per group of VTAB, or else per task, and a bar per system; published rows
    are hollow diamonds."""
    if section.whole:
        panels = {g.capitalize(): [tasks] for g, tasks in section.groups.items()}
        panels["Mean of the groups"] = list(section.groups.values())
    else:
        panels = {short_name(task): [[task]] for task in section.tasks}
        if len(section.tasks) > 1:
            panels[section.headline.capitalize()] = [section.tasks]
    systems = systems_of(study, section)
    keys = dict(zip(panels, [*section.groups, "group mean"], strict=False))
    rows = reversed(published_rows(study)) if section.whole else ()
    published = {
        (row.system.label, t): row.row[k] for row in rows for t, k in keys.items() if k in row.row
    }
    columns = min(4, len(panels))
    figures = [_bars_figure(panels, systems, published, c) for c in dict.fromkeys((columns, 1))]
    shown = [average(s.accuracies, groups) for s in systems for groups in panels.values()]
    caption = f"{section.title}: accuracy on test, %, from 0.{_bars_said(shown)}"
    if published:
        caption += " Diamonds: the published row of the method (the first of the table's)."
    alt = f"Bars of accuracy by method for {', '.join(panels)}; the numbers are in the table."
    narrow = figures[1] if len(figures) > 1 else None
    return Figure(f"{section.name}-bars", figures[0], alt, caption, narrow)


def _bars_figure(
    panels: dict[str, list[list[str]]],
    systems: Sequence[System],
    published: dict[tuple[str, str], float],
    columns: int,
) -> Any:
    """Figure of the panels; `published` holds published values by system's label and title."""
    lines = -(-len(panels) // columns)
    height = lines * (0.55 + 0.27 * len(systems)) + 0.3
    width = 2.4 * columns + 1.8 if columns > 1 else 3.6
    figure = new_figure(min(9.2, width), max(height, 1.7))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    thin = {"error_kw": {"ecolor": INK, "elinewidth": 1, "capsize": 2}}
    diamond = {"color": INK, "markersize": 4.5, "markerfacecolor": PAPER, "zorder": 4}
    for axis, (title, groups) in zip(grid.flat, panels.items(), strict=False):
        tidy(axis, title, grid="x")
        digits = 2 if sum(map(len, groups)) > 1 else 1  # as in the table
        for y, system in enumerate(systems):
            value = average(system.accuracies, groups)
            if value is None:
                continue
            axis.barh(y, value.mean, 0.72, color=system.style.color, xerr=value.error, **thin)
            text = f"{value.mean:.{digits}f}"
            axis.text(126, y, text, va="center", ha="right", fontsize=8.5, color=INK)
            if (system.label, title) in published:
                axis.plot(published[system.label, title], y, "D", **diamond)
        axis.set_xlim(0, 128)
        axis.set_xticks(range(0, 101, 25))
        axis.spines["bottom"].set_bounds(0, 100)
        axis.set_ylim(len(systems) - 0.4, -0.6)
        longest = 60 if columns > 1 else 24
        axis.set_yticks(range(len(systems)), [figure_text(s.label, longest) for s in systems])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.spines["left"].set_visible(False)
    for axis in list(grid.flat)[len(panels) :]:
        axis.set_visible(False)
    return figure


def accuracy_against_rank(study: Study) -> Figure | None:
    """Figure of the mean over the tasks that all ranks of a method have; None if no method has two
    ranks."""
    ranks: dict[str, dict[float, System]] = defaultdict(dict)
    for system in study.systems:
        rank, *others = (r.get("settings", {}).get("rank") for r in system.results)
        if type(rank) in (int, float) and 0 < rank < 1e6 and all(r == rank for r in others):
            ranks[system.method].setdefault(rank, system)
    curves: dict[str, tuple[list[tuple[float, Stat]], int, System]] = {}
    for method, systems in ranks.items():
        sets = [set(s.accuracies) for s in systems.values()]
        common = sorted(set.intersection(*sets))
        if len(systems) > 1 and common:
            means = ((k, average(s.accuracies, [common])) for k, s in sorted(systems.items()))
            curve = [(k, v) for k, v in means if v is not None]
            curves[method] = curve, len(common), next(iter(systems.values()))
    if not curves:
        return None
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    tidy(axis)
    handles = []
    for method, (curve, tasks, system) in curves.items():
        label = f"{figure_text(method)}, mean of {tasks} task{'s' if tasks > 1 else ''}"
        x, y, errors = zip(*((k, v.mean, v.error or 0) for k, v in curve), strict=True)
        look = {**system.style._asdict(), "markersize": 6, "linewidth": 1.5}
        axis.errorbar(x, y, errors, **look, capsize=3)
        handles.append(line_handle(system))
        handles[-1].set_label(label)
    axis.set_xscale("log", base=2)
    ticks = sorted({k for curve, _, _ in curves.values() for k, _ in curve})
    axis.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axis.minorticks_off()
    axis.set_xlabel("rank")
    axis.set_ylabel("accuracy on test, %")
    legend(figure, handles, 2)
    values = [value for curve, _, _ in curves.values() for _, value in curve]
    caption = (
        "Accuracy on test against the rank, one row of the table a point; the tasks are those that "
        f"all ranks of the method have.{_bars_said(values)}"
    )
    return Figure("rank", figure, "Accuracy against rank by method.", caption)
