"""The result tables: methods down, tasks across, with published rows below ours."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from fact_jax.data import VTAB, Task
from fact_jax.report.blocks import Cell, Column, Row, Table
from fact_jax.report.published import published
from fact_jax.report.statistics import Stat, average, stat
from fact_jax.report.study import Study, System
from fact_jax.report.tables import GROUPS, architectures_tried, published_columns

# Rows of methods whose configs name none.
_ROWS = {"fact_tt": "fact_tt_le16", "fact_tk": "fact_tk_le32"}
_SHORT = {  # headings of columns; the other tasks have short names
    "oxford_flowers102": "flowers",
    "oxford_iiit_pet": "pets",
    "caltech101": "caltech",
    "patch_camelyon": "camelyon",
    "diabetic_retinopathy": "retino.",
    "clevr_count": "clevr count",
    "clevr_dist": "clevr dist",
    "dsprites_loc": "dspr. loc",
    "dsprites_ori": "dspr. ori",
    "smallnorb_azi": "norb azi",
    "smallnorb_ele": "norb ele",
}

COST_COLUMNS = (
    Column("numbers", hint="trained and stored for a task, without the head"),
    Column("with head", "Cost", hint="numbers trained for a task, the head's included"),
    Column("bytes", "Cost", hint="size of the stored file of a task"),
    Column(
        "grid", "Cost", hint="settings, + architectures, that were chosen from on validation data"
    ),
    Column("seeds", "Cost"),
)


class Section(NamedTuple):
    """Tasks that have a table, an average and figures together.

    The headline average, named `headline`, is the mean of the means of the `groups`. `whole` says
    whether these are all of VTAB's 19 tasks.
    """

    name: str
    title: str
    groups: dict[str, list[str]]
    headline: str
    whole: bool

    @property
    def tasks(self) -> list[str]:
        return [task for group in self.groups.values() for task in group]

    @property
    def digits(self) -> int:
        """Decimals of the headline, here and in the table: two for an average, one for a task."""
        return 2 if len(self.tasks) > 1 else 1

    @property
    def units(self) -> list[list[str]]:
        """Units of a test over tasks: a data set of few-shot tasks counts as one."""
        return list(self.groups.values()) if self.name == "fewshot" else [[t] for t in self.tasks]

    @property
    def averages(self) -> dict[str, list[list[str]]]:
        """Columns of averages: for each title the groups that go into it."""
        columns = {self.headline: list(self.groups.values())} if len(self.tasks) > 1 else {}
        if self.whole:
            columns["mean of 19"] = [self.tasks]
        return columns


def sections(study: Study) -> list[Section]:
    """Sections of all tasks but few-shot tasks, which have `few_shot_section`."""
    parts = []
    if tasks := study.vtab:
        whole = len(tasks) == len(VTAB)
        groups = {g: [t.name for t in tasks if t.group == g] for g in GROUPS}
        if whole:
            parts.append(Section("vtab", "VTAB-1K", groups, "group mean", True))
        else:
            title = f"VTAB-1K, {len(tasks)} of its {len(VTAB)} tasks"
            parts.append(Section("vtab", title, _single(tasks), _mean_of(tasks), False))
    if tasks := study.offline:
        title = "Offline suite (not VTAB-1K)"
        parts.append(Section("offline", title, _single(tasks), _mean_of(tasks), False))
    if tasks := study.own:
        parts.append(Section("own", "Own data sets", _single(tasks), _mean_of(tasks), False))
    return parts


def few_shot_section(study: Study) -> Section | None:
    """Section of all few-shot tasks, whose groups are the data sets; None if there are none."""
    groups: dict[str, list[str]] = {}
    for task in study.few_shot:
        groups.setdefault(task.dataset, []).append(task.name)
    if not groups:
        return None
    headline = f"mean of {len(groups)} data sets" if len(groups) > 1 else "mean over the shots"
    return Section("fewshot", "Few-shot classification", groups, headline, False)


def _single(tasks: Sequence[Task]) -> dict[str, list[str]]:
    return {"": [t.name for t in tasks]}


def _mean_of(tasks: Sequence[Task]) -> str:
    return f"mean of {len(tasks)}" if len(tasks) > 1 else f"accuracy on {tasks[0].name}"


def headline(system: System, section: Section) -> Stat | None:
    """The average that the section's figures and conclusions are about."""
    return average(system.accuracies, list(section.groups.values()))


class Published(NamedTuple):
    """A published row: `row` holds accuracies by task or mean, `params` numbers without the head
    (None: not printed)."""

    title: str
    system: System
    row: dict[str, float]
    params: float | None
    source: str


def published_rows(study: Study) -> list[Published]:
    """Published rows of the study's methods on VTAB-1K, each once, with their sources."""
    rows: dict[str, Published] = {}
    table, rerun = published()["vtab1k"], published()["vtab1k_independent_rerun"]
    for system in study.systems:
        name = system.published or _ROWS.get(system.method, system.method)
        for title, row in published_columns(system.method, name).items():
            printed = title.startswith("published")
            entry = table[name] if printed else rerun["methods"][system.method]
            how = entry.get("setting") if printed else rerun["about"]
            source = [entry["source"], how or "", entry.get("note") or ""]
            millions = entry.get("params_m")
            params = None if millions is None else 1e6 * millions
            text = ". ".join(s.rstrip(".") for s in source if s) + "."
            rows.setdefault(title, Published(title, system, row, params, text))
    return list(rows.values())


def short_name(task: str) -> str:
    """A task's name as the heads of wide tables have it."""
    return _SHORT.get(task, task)


def seeds_said(stats: Sequence[Stat]) -> str:
    """The part of a table's caption that says what its numbers are."""
    if any(value.error is not None for value in stats):
        return "Mean ± standard error over seeds"
    return "Mean over seeds" if any(value.seeds > 1 for value in stats) else "One seed"


def stat_cell(value: Stat | None, bold: bool = False, digits: int = 1) -> Cell:
    """A cell of the mean with the standard error below it."""
    if value is None:
        return Cell("–")
    note = "" if value.error is None else f"± {value.error:.{digits}f}"
    return Cell(f"{value.mean:.{digits}f}", value.mean, note, bold)


def section_table(study: Study, section: Section) -> Table:
    """Sortable table of a section; the best of ours in each column is bold, also if it is a tie."""
    averages, systems = section.averages, systems_of(study, section)
    means = {g: tasks for g, tasks in section.groups.items() if g and len(tasks) > 1}
    columns = [Column("method", numeric=False)]
    columns += COST_COLUMNS[:1]
    columns += [Column(title, "Averages", strong=True) for title in averages]
    values: list[dict[str, Stat | None]] = []
    for system in systems:
        accuracies = system.accuracies
        row: dict[str, Stat | None] = {
            title: average(accuracies, groups) for title, groups in averages.items()
        }
        row |= {group: average(accuracies, [tasks]) for group, tasks in means.items()}
        for task in section.tasks:
            by_seed = accuracies.get(task)
            row[task] = stat([*by_seed.values()]) if by_seed else None
        values.append(row)
    keys = list(averages)
    for group, tasks in section.groups.items():
        heading = group.capitalize() or "Tasks"
        if group in means:
            columns.append(Column("mean", heading, hint=f"mean of the {group} tasks", strong=True))
            keys.append(group)
        columns += [Column(short_name(task), heading, hint=task) for task in tasks]
        keys += tasks
    columns += COST_COLUMNS[1:]
    fine = {*averages, *means}
    best = {key: max((v.mean for row in values if (v := row[key])), default=None) for key in keys}
    rows = []
    theirs = published_rows(study) if section.name == "vtab" else []
    for system, row in zip(systems, values, strict=True):
        cells = [
            stat_cell(v := row[k], v is not None and v.mean == best[k], 2 if k in fine else 1)
            for k in keys
        ]
        numbers, *cost = cost_cells(system, section.tasks)
        name = Cell(system.label, system.label, colour=system.style.color)
        rows.append(Row([name, numbers, *cells, *cost]))
        rows += [_published_row(p, keys, fine) for p in theirs if p.system is system]
    stats = [value for row in values for value in row.values() if value is not None]
    caption = (
        f"{section.title}: top-1 accuracy on test, %. {seeds_said(stats)}; bold: the best of ours."
    )
    return Table(caption, columns, rows)


def _published_row(row: Published, keys: Sequence[str], fine: set[str]) -> Row:
    """The table's row of published numbers, which stands below the method's row."""
    stats = [None if (value := row.row.get(k)) is None else Stat(value, None, 1) for k in keys]
    cells = [stat_cell(s, digits=2 if k in fine else 1) for k, s in zip(keys, stats, strict=True)]
    params = row.params
    numbers = (
        Cell("–") if params is None else Cell(f"{params / 1e6:.3g} M" if params else "0", params)
    )
    title, _, note = row.title.partition(" (")
    name = Cell(title, row.title, note.removesuffix(")"), hint=row.source)
    return Row([name, numbers, *cells, *[Cell("–")] * len(COST_COLUMNS[1:])], published=True)


def systems_of(study: Study, section: Section) -> list[System]:
    """Systems that have results of a section's tasks."""
    return [s for s in study.systems if any(t in s.accuracies for t in section.tasks)]


def cost_cells(system: System, tasks: Sequence[str]) -> list[Cell]:
    """The cells of `COST_COLUMNS`: means over the tasks, size of the grid, seeds."""
    results = [r for r in system.results if r["task"] in tasks]
    heads = [{**r, "all": _sum(r.get("num_factors"), r.get("num_head"))} for r in results]
    cells = [_mean_cell([r.get(key) for r in heads]) for key in ("num_factors", "all")]
    cells.append(_mean_cell([r.get("factor_file_bytes") for r in results]))
    seeds = [len(values) for t, values in system.accuracies.items() if t in tasks]
    for numbers in ([r.get("grid_size", 1) for r in results], seeds):
        cells.append(Cell(_range(numbers), max(numbers)))
    if tried := [n for r in results if (n := architectures_tried(r))]:
        cells[-2] = Cell(f"{cells[-2].text} + {_range(tried)}", max(tried))
    return cells


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _sum(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


def _mean_cell(values: list[Any]) -> Cell:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return Cell("–")
    mean, low, high = statistics.fmean(numbers), min(numbers), max(numbers)
    hint = "" if low == high else f"{low:,} to {high:,} by task"
    return Cell(f"{round(mean):,}", mean, hint=hint)
