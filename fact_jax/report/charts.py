"""Figures of averages: accuracy against size, bars by group or task, accuracy against rank."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from fact_jax.report.blocks import Figure
from fact_jax.report.figures import figure_text, legend, new_figure, tidy
from fact_jax.report.palette import INK, PAPER, SOFT
from fact_jax.report.sections import Section, headline, published_rows, short_name
from fact_jax.report.statistics import Stat, average
from fact_jax.report.study import Study, System


def line_handle(system: System, **more: Any) -> Any:
    """The entry of a system in a legend."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], **system.style._asdict(), markersize=5, label=figure_text(system.label), **more
    )


def accuracy_against_size(study: Study, section: Section) -> Figure | None:
    """The paper's figure: the headline average against numbers stored for a task, log scale; the
    published rows hollow. None where no system has all tasks."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    points = [
        (system, _numbers(system, section), value)
        for system in study.systems
        if (value := headline(system, section)) is not None
    ]
    points = [(s, n, v) for s, n, v in points if n is not None]
    known = published_rows(study) if section.whole else []
    known = [k for k in known if k.params is not None and "group mean" in k.row]
    if not points:
        return None
    sizes = [n for _, n, _ in points] + [k.params or 0 for k in known]
    positive = [n for n in sizes if n and n > 0]
    zero = min(positive, default=1000) / 4  # where a probe, which stores nothing, is drawn
    figure = new_figure(9.2, 4.6)
    axis = figure.subplots()
    tidy(axis)
    for row in known:
        axis.plot(
            [row.params or zero], [row.row["group mean"]], marker=row.system.style.marker,
            color=row.system.style.color, markerfacecolor=PAPER, markersize=7, linestyle="",
            markeredgewidth=1.3,
        )  # fmt: skip
    for system, numbers, value in points:
        axis.errorbar(
            [numbers or zero], [value.mean], [value.error or 0], marker=system.style.marker,
            color=system.style.color, markersize=8, linestyle="", capsize=3, elinewidth=1.2,
            zorder=3,
        )  # fmt: skip
    axis.set_xscale("log")
    if any(n == 0 for n in sizes):
        axis.axvline(zero * 2, color=SOFT, linewidth=0.7, linestyle=(0, (2, 3)))
    axis.set_xlim(left=zero / 1.6, right=max(positive, default=zero) * 1.8)
    low = zero * 2.2
    high = max(positive, default=1) * 1.8
    steps = (1, 2, 5) if high < 500 * low else (1,)
    ticks = [s * 10.0**e for e in range(1, 10) for s in steps if low < s * 10.0**e < high]
    zeros = [zero] if any(n == 0 for n in sizes) else []
    axis.set_xticks([*zeros, *ticks])
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x in zeros else _power(x)))
    axis.set_xlabel("numbers trained and stored for a task, without the head")
    axis.set_ylabel(figure_text(f"{section.headline}, %", 80))
    handles = [
        Line2D([], [], color=s.style.color, marker=s.style.marker, linestyle="", markersize=6.5,
               label=figure_text(s.label))
        for s, _, _ in points
    ]  # fmt: skip
    if known:
        handles.append(Line2D([], [], color=SOFT, marker="o", linestyle="", markersize=6,
                              markerfacecolor=PAPER, label="published (hollow)"))  # fmt: skip
    legend(figure, handles, 6)
    shown = "; ".join(f"{s.label} {n:,.0f} numbers, {v.mean:.1f} %" for s, n, v in points)
    caption = (
        f"{section.title}: {section.headline}, top-1 on test, against what a task stores. "
        "Bars: standard error over seeds"
        + ("; the published rows of the table have none." if known else ".")
    )
    return Figure(f"{section.name}-size", figure, f"{section.headline}: {shown}.", caption)


def _power(x: float) -> str:
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if x >= unit:
            return f"{x / unit:g}{word}"
    return f"{x:g}"


def _numbers(system: System, section: Section) -> float | None:
    own: list[Any] = [r.get("num_factors") for r in system.results if r["task"] in section.tasks]
    return None if not own or None in own else statistics.fmean(own)


def bars(study: Study, section: Section) -> Figure:
    """A panel a group of VTAB (of other tasks, a panel a task), a bar a system; published rows as
    hollow diamonds."""
    if section.whole:
        panels = {g.capitalize(): [own] for g, own in section.groups.items()}
        panels["Mean of the groups"] = list(section.groups.values())
    else:
        panels = {short_name(task): [[task]] for task in section.tasks}
        if len(section.tasks) > 1:
            panels[section.headline.capitalize()] = [section.tasks]
    systems = [s for s in study.systems if any(t in s.accuracies for t in section.tasks)]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    height = lines * (0.55 + 0.27 * len(systems)) + 0.3
    figure = new_figure(min(9.2, 2.4 * columns + 1.8), max(height, 1.7))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    known = {} if not section.whole else {
        (k.system.label, key): k.row[key]
        for k in reversed(published_rows(study)) for key in k.row
    }  # fmt: skip
    keys = [*section.groups, "group mean"] if section.whole else []
    for i, (axis, (title, groups)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        tidy(axis, title, grid="x")
        for y, system in enumerate(systems):
            value = average(system.accuracies, groups)
            if value is None:
                continue
            axis.barh(y, value.mean, 0.72, color=system.style.color, xerr=value.error,
                      error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2})  # fmt: skip
            axis.text(126, y, f"{value.mean:.1f}", va="center", ha="right", fontsize=8.5,
                      color=INK)  # fmt: skip
            if keys and (system.label, keys[i]) in known:
                axis.plot(known[system.label, keys[i]], y, "D", color=INK, markersize=4.5,
                          markerfacecolor=PAPER, zorder=4)  # fmt: skip
        axis.set_xlim(0, 128)
        axis.set_xticks(range(0, 101, 25))
        axis.spines["bottom"].set_bounds(0, 100)
        axis.set_ylim(len(systems) - 0.4, -0.6)
        axis.set_yticks(range(len(systems)), [figure_text(s.label) for s in systems])
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.spines["left"].set_visible(False)
    for axis in list(grid.flat)[len(panels) :]:
        axis.set_visible(False)
    caption = f"{section.title}: accuracy on test, %, from 0; standard errors over seeds."
    if known:
        caption += " Diamonds: the published row of the method (the first of the table's)."
    alt = f"Bars of accuracy by method for {', '.join(panels)}; the numbers are in the table."
    return Figure(f"{section.name}-bars", figure, alt, caption)


def accuracy_against_rank(study: Study) -> Figure | None:
    """The mean over the tasks that all ranks of a method have; None without two ranks of one."""
    ranks: dict[str, dict[float, System]] = defaultdict(dict)
    for system in study.systems:
        own = [r.get("settings", {}).get("rank") for r in system.results]
        if type(own[0]) in (int, float) and 0 < own[0] < 1e6 and own.count(own[0]) == len(own):
            ranks[system.method].setdefault(own[0], system)
    curves: dict[str, tuple[list[tuple[float, Stat]], int, System]] = {}
    for method, systems in ranks.items():
        sets = [set(s.accuracies) for s in systems.values()]
        common = sorted(set.intersection(*sets))
        if len(systems) > 1 and common:
            means = ((k, average(s.accuracies, [common])) for k, s in sorted(systems.items()))
            known = [(k, v) for k, v in means if v is not None]
            curves[method] = known, len(common), next(iter(systems.values()))
    if not curves:
        return None
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    tidy(axis)
    handles = []
    for method, (curve, tasks, system) in curves.items():
        label = f"{figure_text(method)}, mean of {tasks} task{'s' if tasks > 1 else ''}"
        axis.errorbar(
            [k for k, _ in curve], [v.mean for _, v in curve], [v.error or 0 for _, v in curve],
            **system.style._asdict(), markersize=6, capsize=3, linewidth=1.5,
        )  # fmt: skip
        handles.append(line_handle(system))
        handles[-1].set_label(label)
    axis.set_xscale("log", base=2)
    ticks = sorted({k for curve, _, _ in curves.values() for k, _ in curve})
    axis.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axis.minorticks_off()
    axis.set_xlabel("rank")
    axis.set_ylabel("accuracy on test, %")
    legend(figure, handles, 2)
    return Figure(
        "rank", figure, "Accuracy against rank by method.",
        "Accuracy on test against the rank, one row of the table a point; the tasks are those that "
        "all ranks of the method have. Bars: standard error over seeds.",
    )  # fmt: skip
