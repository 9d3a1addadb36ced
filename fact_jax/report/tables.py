"""The tables of results: methods down, with published rows below ours, averages, tasks, costs."""

from collections.abc import Mapping, Sequence

import rich.table

from fact_jax.data import VTAB
from fact_jax.report.averages import Groups, Stat, average, stat
from fact_jax.report.published import PublishedRow, vtab_rows
from fact_jax.report.sections import GROUPS, Section, plain_section, short_name, vtab_section
from fact_jax.report.study import System, sweep_systems
from fact_jax.report.table import MISSING, Cell, Column, Row, Table, name_cell, stat_cell
from fact_jax.report.terminal import rich_table
from fact_jax.sweep.result import Result

TITLE = "Top-1 accuracy on test, %"  # of tables in the terminal
COST_COLUMNS = (
    Column("numbers", hint="trained and stored for a task, without the head"),
    Column("with head", "Cost", hint="numbers trained for a task, the head's included"),
    Column("bytes", "Cost", hint="size of the stored file of a task"),
    Column(
        "grid", "Cost", hint="settings, + architectures, that were chosen from on validation data"
    ),
    Column("seeds", "Cost"),
)
COSTS = [column.name for column in COST_COLUMNS]
_SHORT_COSTS = ["numbers", "bytes", "grid"]  # in the terminal
_FEW_METHODS = 4  # that stand side by side in the terminal
_FEW_TASKS = 6  # that have a column each, where more methods than that are compared there


def published_rows(systems: Sequence[System]) -> list[tuple[System, PublishedRow]]:
    """Published rows of the systems on VTAB-1K, each once, with the first system of its method."""
    rows: dict[str, tuple[System, PublishedRow]] = {}
    for system in systems:
        for row in vtab_rows(system.method, system.published):
            rows.setdefault(row.title, (system, row))
    return list(rows.values())


def headline(system: System, section: Section) -> Stat | None:
    """The average that the section's figures and conclusions are about."""
    return average(system.accuracies, list(section.groups.values()))


def systems_of(systems: Sequence[System], section: Section) -> list[System]:
    """The systems that have results of a section's tasks."""
    return [s for s in systems if any(t in s.accuracies for t in section.tasks)]


def seeds_said(stats: Sequence[Stat]) -> str:
    """The part of a table's caption that says what its numbers are."""
    if any(value.error is not None for value in stats):
        return "Mean ± standard error over seeds"
    return "Mean over seeds" if any(value.seeds > 1 for value in stats) else "One seed"


def result_table(systems: Sequence[System], section: Section) -> Table:
    """All numbers of a section; the best of ours in each column is bold, also if it is a tie."""
    parts: dict[str, Groups] = {**section.averages, **{t: [[t]] for t in section.tasks}}
    values = [{k: average(s.accuracies, groups) for k, groups in parts.items()} for s in systems]
    best = {k: max((v.mean for row in values if (v := row[k])), default=None) for k in parts}
    digits = {k: 2 if k in section.averages else 1 for k in parts}
    columns = [Column("method", numeric=False), COST_COLUMNS[0]]
    columns += [Column(name, "Averages", strong=True) for name in section.averages]
    columns += [
        Column(short_name(task), group.capitalize(), hint=task, key=task)
        for group, tasks in section.groups.items()
        for task in tasks
    ]
    columns += COST_COLUMNS[1:]
    rows = []
    published = published_rows(systems) if section.name == "vtab" else []
    for system, row in zip(systems, values, strict=True):
        cells = [
            stat_cell(v, digits[k], bold=v is not None and v.mean == best[k])
            for k, v in row.items()
        ]
        numbers, *costs = cost_cells(system, section.tasks)
        name = name_cell(system.label, system.style.color)
        rows.append(Row([name, numbers, *cells, *costs]))
        rows += [_published_row(p, digits) for of, p in published if of is system]
    stats = [value for row in values for value in row.values() if value is not None]
    caption = (
        f"{section.title}: {section.full_measure} on test, %. {seeds_said(stats)}; bold: the best "
        "of ours."
    )
    if several := _with_several_labels(systems, section.tasks):
        caption += f" {' and '.join(several)}: mean average precision, images have several labels."
    return Table(caption, columns, rows)


def _with_several_labels(systems: Sequence[System], tasks: Sequence[str]) -> list[str]:
    """The tasks whose images have several labels, and whose number is the mAP."""
    results = [result for system in systems for result in system.results]
    several = {result.task for result in results if result.label_precision is not None}
    return [task for task in tasks if task in several]


def _published_row(row: PublishedRow, digits: Mapping[str, int]) -> Row:
    """The row of published numbers, with the digits that were published."""
    cells = [
        MISSING if (v := row.values.get(k)) is None else Cell(f"{v:.2f}" if n > 1 else f"{v}", v)
        for k, n in digits.items()
    ]
    params = row.params
    numbers = (
        MISSING if params is None else Cell(f"{params / 1e6:.3g} M" if params else "0", params)
    )
    title, bracket, note = row.title.partition(" (")
    name = Cell(title, row.title, f"({note}" if bracket else "", hint=row.source)
    return Row([name, numbers, *cells, *[MISSING] * len(COST_COLUMNS[1:])], published=True)


def cost_cells(system: System, tasks: Sequence[str]) -> list[Cell]:
    """The cells of `COST_COLUMNS`: means over the tasks, size of the grid, seeds."""
    results = [r for r in system.results if r.task in tasks]
    heads = [
        None if r.num_factors is None or r.num_head is None else r.num_factors + r.num_head
        for r in results
    ]
    kinds = [result.kind for result in results]
    grid = _range([kind.grid or 1 for kind in kinds])
    if tried := [kind.architectures for kind in kinds if kind.architectures]:
        grid = Cell(f"{grid.text} + {_range(tried).text}", max(tried))
    seeds = [len(values) for task, values in system.accuracies.items() if task in tasks]
    return [
        _mean_cell([r.num_factors for r in results]),
        _mean_cell(heads),
        _mean_cell([r.factor_file_bytes for r in results]),
        grid,
        _range(seeds),
    ]


def _range(numbers: Sequence[int]) -> Cell:
    if not numbers:
        return MISSING
    low, high = min(numbers), max(numbers)
    return Cell(f"{low}" if low == high else f"{low} to {high}", high)


def _mean_cell(values: Sequence[int | None]) -> Cell:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return MISSING
    mean, low, high = stat(numbers).mean, min(numbers), max(numbers)
    hint = "" if low == high else f"{low:,} to {high:,} by task"
    return Cell(f"{round(mean):,}", mean, hint=hint)


def terminal_table(
    results: Sequence[Result], tasks: Sequence[str], rows: Mapping[str, str] | None = None
) -> rich.table.Table:
    """The table at the end of a sweep, made of the rows that the page shows.

    Up to four methods stand side by side, with tasks down. More methods stand below each other,
    with a column a task, or only averages for more than six tasks.

    Args:
      results: of one sweep.
      tasks: the sweep's tasks. All of VTAB-1K's are shown where only some of them are planned.
      rows: the methods to show and their published rows ('' for the default).
    """
    systems = sweep_systems(results, rows or {})
    few = len(systems) <= _FEW_METHODS
    vtab = all(task in VTAB for task in tasks) and (few or len(tasks) > _FEW_TASKS)
    section = vtab_section() if vtab else plain_section("", "", list(tasks))
    averages = sorted(section.averages, key=lambda name: name not in GROUPS)
    table = result_table(systems, section)
    several = _with_several_labels(systems, section.tasks)
    title = TITLE + "".join(f"; {task}: mAP" for task in several)
    if set(several) == set(section.tasks):
        title = "mAP on test, %"
    if few:
        names = ["method", *section.tasks, *(averages if vtab else ()), *_SHORT_COSTS]
        groups = [group.capitalize() for group in GROUPS]
        return rich_table(table.select(names).transposed("task", groups), title)
    shown = section.tasks if len(section.tasks) <= _FEW_TASKS else []
    return rich_table(table.select(["method", *shown, *averages, *_SHORT_COSTS]), title)
