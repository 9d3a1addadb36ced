"""Figures of averages: accuracy against size, bars by group or task, accuracy against rank."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fact_jax.report.averages import Groups, Stat, average, stat
from fact_jax.report.blocks import Figure
from fact_jax.report.figures import NARROW, WIDE, figure_text, legend, new_figure, panels, tidy
from fact_jax.report.lines import Line, LineFigure, Point, line_look
from fact_jax.report.palette import INK, PAPER, SOFT
from fact_jax.report.published import PublishedRow
from fact_jax.report.records import method_settings
from fact_jax.report.rows import curve_label
from fact_jax.report.sections import GROUPS, Section, short_name
from fact_jax.report.study import System
from fact_jax.report.tables import headline, published_rows, systems_of

_Points = Sequence[tuple[System, float, Stat]]
_Published = Sequence[tuple[System, PublishedRow]]


def accuracy_against_size(systems: Sequence[System], section: Section) -> Figure | None:
    """The paper's figure: the headline average against numbers stored for a task, log scale.
    Published rows are hollow. None if no system has all tasks."""
    points = [
        (system, numbers, value)
        for system in systems
        if (value := headline(system, section)) is not None
        and (numbers := _numbers(system, section)) is not None
    ]
    if not points:
        return None
    published = [
        (system, row)
        for system, row in (published_rows(systems) if section.whole else ())
        if row.params is not None and "group mean" in row.values
    ]
    wide, narrow = (
        _size_figure(points, published, section, size) for size in ((WIDE, 4.6), (NARROW, 4.2))
    )
    best, _, value = max(points, key=lambda point: point[2].mean)
    caption = (
        f"{section.title}: {section.headline} against the numbers that a task stores. Left and "
        f"high is better; the highest is {best.label} ({value.mean:.{section.digits}f} %)."
        f"{_bars_said([v for _, _, v in points])}"
    )
    if published:
        caption += " Hollow: published rows of the table, which have no error bars."
    shown = "; ".join(
        f"{s.label} {n:,.0f} numbers, {v.mean:.{section.digits}f} %" for s, n, v in points
    )
    return Figure(f"{section.name}-size", wide, f"{section.headline}: {shown}.", caption, narrow)


def _bars_said(values: Iterable[Stat | None]) -> str:
    """The sentence on error bars, '' if there are none."""
    some = any(v is not None and v.error is not None for v in values)
    return " Error bars: standard error over seeds." if some else ""


def _size_figure(
    points: _Points, published: _Published, section: Section, size: tuple[float, float]
) -> Any:
    from matplotlib.lines import Line2D

    sizes = [n for _, n, _ in points] + [row.params or 0 for _, row in published]
    positive = [n for n in sizes if n > 0]
    zero = min(positive, default=1000) / 4  # where a probe, which stores nothing, is drawn
    figure = new_figure(*size)
    axis = figure.subplots()
    tidy(axis)
    for system, row in published:
        look = system.style._replace(linestyle="")._asdict()
        hollow = {"markerfacecolor": PAPER, "markersize": 7, "markeredgewidth": 1.3}
        axis.plot([row.params or zero], [row.values["group mean"]], **look, **hollow)
    for system, numbers, value in points:
        look = system.style._replace(linestyle="")._asdict()
        whiskers = {"capsize": 3 if value.error else 0, "elinewidth": 1.2}
        x, y, error = [numbers or zero], [value.mean], [value.error or 0]
        axis.errorbar(x, y, error, **look, **whiskers, markersize=8, zorder=3)
    wide = size[0] > NARROW
    _size_axis(axis, zero, sizes, 12 if wide else 4)
    axis.set_ylabel(figure_text(f"{section.headline}, %", 80))
    longest = 60 if wide else 36
    labels = [figure_text(system.label, longest) for system, _, _ in points]
    handles = [
        Line2D([], [], **{**system.style._asdict(), "linestyle": ""}, markersize=6.5, label=label)
        for (system, _, _), label in zip(points, labels, strict=True)
    ]
    if published:
        labels.append("published (hollow)")
        dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 6, "color": SOFT}
        handles.append(Line2D([], [], **dot, markerfacecolor=PAPER, label=labels[-1]))
    widest = max(map(len, labels))
    legend(figure, handles, 6 if wide else 3 if widest < 9 else 2 if widest < 19 else 1)
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
    stored = [r.num_factors for r in system.results if r.task in section.tasks]
    known = [number for number in stored if number is not None]
    return stat(known).mean if known and len(known) == len(stored) else None


def bars(systems: Sequence[System], section: Section) -> Figure:
    """Figure with a panel per group of VTAB, or else per task, and a bar per system; published rows
    are hollow diamonds."""
    names = [*GROUPS, "group mean"] if section.whole else [*section.tasks, *section.averages]
    parts: dict[str, Groups] = {
        name: section.averages.get(name) or [[name]] for name in dict.fromkeys(names)
    }
    systems = systems_of(systems, section)
    published: dict[tuple[str, str], float] = {}
    for system, row in published_rows(systems) if section.whole else ():
        for name in parts.keys() & row.values.keys():
            published.setdefault((system.label, name.capitalize()), row.values[name])
    columns = min(4, len(parts))
    titles = {name: name.capitalize() for name in section.averages}
    titles |= {task: short_name(task) for task in section.tasks}
    drawn = {titles[name]: groups for name, groups in parts.items()}
    wide, narrow = (
        _bars_figure(drawn, systems, published, size) for size in ((columns, WIDE), (1, NARROW))
    )
    shown = [average(s.accuracies, groups) for s in systems for groups in parts.values()]
    caption = (
        f"{section.title}: {section.measure} on test in %; longer is better.{_bars_said(shown)}"
    )
    if published:
        caption += " Diamonds: the published row of the method (the first of the table's)."
    alt = (
        f"Bars of {section.measure} by method for {', '.join(parts)}; the numbers are in the table."
    )
    return Figure(f"{section.name}-bars", wide, alt, caption, narrow)


def _bars_figure(
    parts: Mapping[str, Groups],
    systems: Sequence[System],
    published: Mapping[tuple[str, str], float],
    size: tuple[int, float],
) -> Any:
    """Figure of the parts by title; `published` holds published values by system's label and title,
    `size` the number of columns and the width in inches."""
    columns, width = size
    lines = -(-len(parts) // columns)
    height = lines * (0.55 + 0.27 * len(systems)) + 0.3
    figure = new_figure(width, max(height, 1.7))
    axes = panels(figure, len(parts), columns, sharey=True)
    thin = {"error_kw": {"ecolor": INK, "elinewidth": 1, "capsize": 2}}
    diamond = {"color": INK, "markersize": 4.5, "markerfacecolor": PAPER, "zorder": 4}
    for axis, (title, groups) in zip(axes, parts.items(), strict=True):
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
        longest = 60 if width > NARROW else 24
        axis.set_yticks(range(len(systems)), [figure_text(s.label, longest) for s in systems])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.spines["left"].set_visible(False)
    return figure


def accuracy_against_rank(systems: Sequence[System], measure: str = "accuracy") -> Figure | None:
    """Figure of the mean over the tasks that all ranks of a curve have; None if no curve has two
    ranks. Rounded and finished factors, and those of few bits, have curves of their own.

    `measure` is what the numbers are, such as "accuracy".
    """
    ranks: dict[str, dict[float, System]] = defaultdict(dict)
    values_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for system in systems:
        for name, value in method_settings(system.results[0]).items():
            if name != "rank":
                values_of[system.method, name].add(json.dumps(value))
    for system in systems:
        rank, *others = [r.settings.get("rank") for r in system.results]
        if isinstance(rank, int | float) and 0 < rank < 1e6 and all(r == rank for r in others):
            differing = [
                name
                for (method, name), values in values_of.items()
                if method == system.method and len(values) > 1
            ]
            ranks[curve_label(system.results[0], rank, differing)].setdefault(rank, system)
    curves: list[tuple[str, System, list[tuple[float, Stat]]]] = []
    for name, by_rank in ranks.items():
        tasks = sorted(set.intersection(*(set(s.accuracies) for s in by_rank.values())))
        if len(by_rank) > 1 and tasks:
            label = f"{name}, mean of {len(tasks)} task{'s' if len(tasks) > 1 else ''}"
            means = ((k, average(s.accuracies, [tasks])) for k, s in sorted(by_rank.items()))
            curve = [(k, v) for k, v in means if v is not None]
            curves.append((label, next(iter(by_rank.values())), curve))
    if not curves:
        return None
    values = [value for _, _, curve in curves for _, value in curve]
    caption = (
        f"The {measure} on test against the rank: where the line is flat, a larger rank buys "
        "nothing. A point is a row of the table; the tasks are those that all ranks of the line "
        "have."
        f"{_bars_said(values)}"
    )
    looks = {label: line_look(system.style) for label, system, _ in curves}
    lines = [Line([Point(k, *v[:2]) for k, v in curve], looks[name]) for name, _, curve in curves]
    drawing = LineFigure({"": lines}, ("rank", f"{measure} on test, %"), looks, "x")
    alt = f"The {measure} against the rank by method."
    return Figure("rank", drawing.wide(), alt, caption, drawing.narrow())
