"""Few-shot results: a table and the figure accuracy against shots, with the published points."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import rich.table
from etils import epath

from fact_jax.data import get_task
from fact_jax.report.averages import Stat, average
from fact_jax.report.figures import save_figure
from fact_jax.report.lines import Line, LineFigure, Look, Point, line_look
from fact_jax.report.palette import MARKERS, PAPER, SOFT, Style
from fact_jax.report.published import few_shot_baselines, few_shot_points, few_shot_row
from fact_jax.report.study import System, sweep_systems
from fact_jax.report.table import MISSING, Cell, Column, Row, Table, name_cell, stat_cell
from fact_jax.report.tables import COST_COLUMNS, TITLE, cost_cells, seeds_said
from fact_jax.report.terminal import rich_table
from fact_jax.sweep.result import Result

_HOW = "(best on test)"  # NOAH's code, which made the published numbers, prints the largest
MEAN = "mean"  # of the data sets, in the place of one
_PUBLISHED = {"linestyle": "--", "linewidth": 1, "markersize": 4, "markerfacecolor": PAPER}


class Curve(NamedTuple):
    """Accuracy by shots on one data set, or the mean of all: a system's, or published."""

    dataset: str
    name: str
    system: System | None  # of a published curve, the system whose method it is
    points: dict[int, Stat]
    published: bool


def _tasks(systems: Sequence[System]) -> dict[str, dict[int, str]]:
    """Few-shot tasks with results, by data set and shots."""
    places: dict[str, dict[int, str]] = {}
    for name in dict.fromkeys(r.task for s in systems for r in s.results):
        task = get_task(name)
        if few := task.few_shot:
            places.setdefault(task.dataset, {})[few.shots] = name
    return places


def few_shot_curves(systems: Sequence[System]) -> list[Curve]:
    """Curves of each data set, and then of the mean over several.

    A method's published curve follows its first system; the other baselines come last.
    """
    places = _tasks(systems)
    groups = {name: [name] for name in places}
    if len(places) > 1:
        groups[MEAN] = list(places)
    return [
        curve for name, sets in groups.items() for curve in _curves(systems, places, name, sets)
    ]


def _curves(
    systems: Sequence[System],
    places: Mapping[str, Mapping[int, str]],
    name: str,
    sets: Sequence[str],
) -> Iterator[Curve]:
    shots = sorted({k for dataset in sets for k in places[dataset]})
    methods: list[str] = []
    for system in systems:
        tasks = {k: [places[dataset].get(k, "") for dataset in sets] for k in shots}
        points = {k: v for k in shots if (v := average(system.accuracies, [tasks[k]]))}
        if not points:
            continue
        yield Curve(name, system.label, system, points, False)
        theirs = _published(few_shot_row(system.method), sets)
        if theirs and system.method not in methods:
            yield Curve(name, f"published {system.method}", system, theirs, True)
        methods.append(system.method)
    for row, title in few_shot_baselines(methods).items():
        if theirs := _published(row, sets):
            yield Curve(name, f"published {title}", None, theirs, True)


def _published(row: str, sets: Sequence[str]) -> dict[int, Stat]:
    """Published means over the data sets by shots, of those that have all."""
    by_set = [few_shot_points(dataset, row) for dataset in sets]
    accuracies = {
        k: {str(i): {0: points[k]} for i, points in enumerate(by_set) if k in points}
        for k in by_set[0]
    }
    groups = [[str(i) for i in range(len(by_set))]]
    return {k: v for k, by in accuracies.items() if (v := average(by, groups))}


def few_shot_table(systems: Sequence[System]) -> Table:
    """Data sets and methods down, shots across, and the methods' costs."""
    curves, places = few_shot_curves(systems), _tasks(systems)
    shots = sorted({k for tasks in places.values() for k in tasks})
    columns = [Column("method", numeric=False), Column("data", numeric=False), COST_COLUMNS[0]]
    columns += [
        Column(str(k), "Training images a class", key=f"{k} shot{'s' if k > 1 else ''}")
        for k in shots
    ]
    columns += COST_COLUMNS[1:]
    rows = []
    for curve in curves:
        costs = [MISSING] * len(COST_COLUMNS)
        name = Cell(curve.name, curve.name, _HOW)
        if curve.system and not curve.published:
            sets = list(places) if curve.dataset == MEAN else [curve.dataset]
            costs = cost_cells(curve.system, [t for d in sets for t in places[d].values()])
            name = name_cell(curve.name, curve.system.style.color)
        values = [stat_cell(curve.points.get(k)) for k in shots]
        cells = [name, name_cell(curve.dataset), costs[0], *values, *costs[1:]]
        rows.append(Row(cells, curve.published, curve.dataset))
    stats = [v for curve in curves if not curve.published for v in curve.points.values()]
    caption = f"Few-shot: top-1 accuracy on test, %. {seeds_said(stats)}."
    return Table(caption, columns, rows, notes=_remarks(systems, curves))


def terminal_few_shot_table(results: Sequence[Result]) -> rich.table.Table:
    """The table at the end of a few-shot sweep, made of the rows that the page shows."""
    table = few_shot_table(sweep_systems(results, {}))
    shots = [column.name for column in table.columns if column.group.startswith("Training")]
    return rich_table(table.select(["data", "method", *shots, "numbers", "bytes", "grid"]), TITLE)


def _remarks(systems: Sequence[System], curves: Sequence[Curve]) -> list[str]:
    """Sentences on data from other lists than the published ones, or from several lists."""
    sources: dict[str, set[str]] = {dataset: set() for dataset in _tasks(systems)}
    for result in (r for s in systems for r in s.results if r.data):
        task = get_task(result.task)
        if task.few_shot:
            folder = result.data.get("builder") == "folder"
            version = f"{result.data.get('used_version')} lists"
            sources[task.dataset].add(version if folder else "TFDS")
    published = {curve.dataset for curve in curves if curve.published}
    mixed = [f"{name} ({', '.join(sorted(s))})" for name, s in sources.items() if len(s) > 1]
    other = [name for name, s in sources.items() if "TFDS" in s and name in published]
    remarks = []
    if mixed:
        remarks.append(f"Several sources, which do not compare: {'; '.join(mixed)}.")
    if other:
        remarks.append(
            f"Read from TFDS: {', '.join(other)}; the published numbers are of CoOp's lists."
        )
    return remarks


def few_shot_figure(systems: Sequence[System]) -> LineFigure:
    """Figure with a panel per data set and one of their mean, in the systems' colours. Published
    points are dashed and hollow, and grey if the method was not run."""
    curves = sorted(few_shot_curves(systems), key=lambda curve: not curve.published)
    looks = _looks(curves)
    panels: dict[str, list[Line]] = {}
    for dataset in sorted({c.dataset: None for c in curves}, key=MEAN.__eq__):
        lines = [
            Line([Point(k, *v[:2]) for k, v in curve.points.items()], looks[curve.name])
            for curve in curves
            if curve.dataset == dataset
        ]
        panels["mean of the sets" if dataset == MEAN else dataset] = lines
    entries = {c.name: looks[c.name] for c in curves if not c.published}
    if any(c.published and c.system for c in curves):
        entries[f"published {_HOW}"] = {**_PUBLISHED, "color": SOFT, "marker": "o"}
    entries |= {c.name: looks[c.name] for c in curves if not c.system}
    return LineFigure(panels, ("training images a class", "accuracy on test, %"), entries, "x")


def _looks(curves: Sequence[Curve]) -> dict[str, Look]:
    """Looks by a curve's name. Our lines are solid, because dashes mean published."""
    looks: dict[str, Look] = {}
    greys = iter(MARKERS)
    for curve in curves:
        if curve.name in looks:
            continue
        if curve.published:
            style = curve.system.style if curve.system else Style(SOFT, next(greys), "--")
            looks[curve.name] = {**_PUBLISHED, "color": style.color, "marker": style.marker}
        elif curve.system:
            looks[curve.name] = {**line_look(curve.system.style), "linestyle": "-"}
    return looks


def draw_few_shot(results: Sequence[Result], folder: epath.Path) -> list[epath.Path]:
    """Writes fewshot.png and fewshot.svg, see `few_shot_figure`."""
    figure = few_shot_figure(sweep_systems(results, {})).wide()
    paths = [folder / f"fewshot.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        save_figure(figure, path)
    return paths
