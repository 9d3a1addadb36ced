"""The tables that a sweep prints: trained factors, accuracies and costs."""

import statistics
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

from fact_jax.data import VTAB
from fact_jax.report.published import published
from fact_jax.report.statistics import stat
from fact_jax.text import printable

# Published rows of the VPT paper, chosen on validation data; how the last two chose is not known.
_CHOSEN_OTHERWISE = ("full", "linear", "bitfit", "vpt_shallow", "vpt_deep", "ssf", "adaptformer")
GROUPS = ("natural", "specialized", "structured")


def print_table(console: Console, table: Table) -> None:
    """Prints every cell and word in full. On a narrow terminal headers wrap, and lines may be wider
    than the terminal. (Rich cuts names and numbers, also in files and pipes.)"""

    def width(text: Any) -> int:
        return cell_len(printable(str(text)))

    for column in table.columns:
        cells = [*column.cells, *f"{column.header} {column.footer}".split()]
        column.min_width = max(map(width, cells), default=0)
        column.no_wrap = column.min_width >= width(column.header)
    options = console.options.update(width=10_000)
    least = Measurement.get(console, options, table).minimum
    table.width = least if least > console.width else None
    console.print(table, crop=False)


def parameter_table(factors: Any) -> Table:
    """Name, shape and size of every factor (arrays or shape structs), and their total."""
    table = Table("factor", "shape", Column("numbers", justify="right"), show_footer=True)
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(factors):
        size = int(np.prod(leaf.shape))
        total += size
        name = "/".join(str(k.key) for k in keys)
        table.add_row(name, " x ".join(map(str, leaf.shape)), f"{size:,}")
    table.columns[0].footer, table.columns[2].footer = "trained in all", f"{total:,}"
    return table


def mean_text(values: Collection[float] | None, digits: int = 1) -> str:
    """Mean and, for several values, ± standard error; "-" without values."""
    return stat([*values]).text(digits) if values else "-"


def vtab_means(tasks: dict[str, float]) -> dict[str, float | None]:
    """Group means and both averages of a row {task: accuracy}; None where tasks are missing."""
    means: dict[str, float | None] = {}
    for group in GROUPS:
        names = [name for name, task in VTAB.items() if task.group == group]
        complete = all(name in tasks for name in names)
        means[group] = statistics.fmean(tasks[n] for n in names) if complete else None
    groups = [m for g in GROUPS if (m := means[g]) is not None]
    complete = len(groups) == len(GROUPS)
    means["group mean"] = statistics.fmean(groups) if complete else None
    means["mean of 19"] = statistics.fmean(tasks[n] for n in VTAB) if complete else None
    return means


def published_columns(method: str, row: str) -> dict[str, dict[str, float]]:
    """Published rows of a method, {column title: {task or mean: accuracy}}."""
    columns = {}
    if row in published()["vtab1k"]:
        how = "" if row in _CHOSEN_OTHERWISE else " (best on test)"
        columns[f"published {row}{how}"] = published()["vtab1k"][row]
    rerun = published()["vtab1k_independent_rerun"]["methods"]
    if method in rerun:
        columns[f"re-run {method} (OSU, val)"] = rerun[method]
    renamed = {"group_mean": "group mean", "flat_mean_19": "mean of 19"}
    return {
        title: {**r["tasks"], **{renamed.get(k, k): v for k, v in r["mean"].items()}}
        for title, r in columns.items()
    }


def architectures_tried(result: dict[str, Any]) -> int:
    """Number of architectures that a search measured on validation data; 0 without a search."""
    search = result.get("search")
    return search["history"][-1]["tried"] if search else 0


def costs(results: list[dict[str, Any]]) -> dict[str, str]:
    """Costs of one method: numbers and bytes of a task, the mean over tasks, and the grid's size.

    A search among architectures adds their number: '3 + 30'.
    """
    grid = f"{max(r['grid_size'] for r in results)}"
    if tried := max(map(architectures_tried, results)):
        grid += f" + {tried}"
    numbers, stored = (
        f"{round(statistics.fmean(r[k] for r in results)):,}"
        for k in ("num_factors", "factor_file_bytes")
    )
    return {"numbers": numbers, "bytes": stored, "grid": grid}


def _by_method(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for r in results:
        by_method[r["method"]].append(r)
    return by_method


def _over_tasks(
    results: list[dict[str, Any]], tasks: list[str], vtab: bool
) -> dict[str, list[float]]:
    """Means over tasks of one method, one for each seed that has all tasks. If no seed has them
    all, it is the mean of the tasks' means. With `vtab` they are `vtab_means`, else "mean"."""
    by_seed: dict[Any, dict[str, float]] = defaultdict(dict)
    by_task: dict[str, list[float]] = defaultdict(list)
    for r in results:
        by_seed[r["seed"]][r["task"]] = r["accuracy"]
        by_task[r["task"]].append(r["accuracy"])

    def means(row: dict[str, float]) -> dict[str, float | None]:
        if vtab:
            return vtab_means(row)
        return {"mean": statistics.fmean(row[t] for t in tasks) if set(tasks) <= set(row) else None}

    together = means({task: statistics.fmean(v) for task, v in by_task.items()})
    seeds = [means(row) for row in by_seed.values()]
    return {
        name: [v for row in seeds if (v := row[name]) is not None] or ([] if one is None else [one])
        for name, one in together.items()
    }


def comparison_table(
    results: list[dict[str, Any]], tasks: list[str], rows: dict[str, str] | None = None
) -> Table:
    """Table with methods down, tasks across (for more than six tasks only the means), accuracy in %
    (± standard error over seeds), and `costs`. With `rows`, as for `result_table`, a table of
    VTAB's means has the published group means beside ours."""
    columns = tasks if len(tasks) <= 6 else []
    vtab = all(name in VTAB for name in tasks) and not columns
    means = [*GROUPS, "group mean", "mean of 19"] if vtab else ["mean"]
    theirs = ("published group mean", "re-run group mean (OSU, val)") if vtab and rows else ()
    table = Table(title="Top-1 accuracy on test, %", title_justify="left")
    table.add_column("method")
    for name in (*columns, *means, *theirs, "numbers", "bytes", "grid"):
        table.add_column(name, justify="right")
    for method, runs in _by_method(results).items():
        values: dict[str, list[float]] = defaultdict(list)
        for r in runs:
            values[r["task"]].append(r["accuracy"])
        over = _over_tasks(runs, tasks, vtab)
        summary = [mean_text(over[name], 2 if vtab else 1) for name in means]
        others = _published_means(method, (rows or {}).get(method, "")) if theirs else ()
        cells = (*(mean_text(values.get(t)) for t in columns), *summary, *others)
        table.add_row(method, *cells, *costs(runs).values())
        if any(text.endswith("*") for text in others):
            table.caption = "* the best of the test evaluations"
    return table


def _published_means(method: str, row: str) -> tuple[str, str]:
    """Group means of the published row and of the re-run; a star marks the best on test."""
    paper, rerun = "-", "-"
    for title, accuracies in published_columns(method, row).items():
        mean = f"{accuracies['group mean']:.2f}"
        if title.startswith("re-run"):
            rerun = mean
        else:
            paper = mean + "*" * title.endswith("(best on test)")
    return paper, rerun


def result_table(results: list[dict[str, Any]], tasks: list[str], rows: dict[str, str]) -> Table:
    """Table with tasks down, methods across, accuracy in % (± standard error over seeds).

    `rows` maps a method to its row in the published results ('' for none). VTAB's tables close
    with the group means and both averages, which need all of a group's tasks; `costs` come last.
    """
    accuracy: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in results:
        accuracy[r["method"]][r["task"]].append(r["accuracy"])
    by_method = _by_method(results)
    vtab = all(name in VTAB for name in tasks)
    names = list(VTAB) if vtab else tasks
    columns: dict[str, dict[str, str]] = {}
    for method, row in rows.items():
        cells = {task: mean_text(accuracy[method].get(task)) for task in names}
        if vtab:
            means = _over_tasks(by_method.get(method, []), names, vtab)
            cells |= {name: mean_text(values, 2) for name, values in means.items()}
        cells |= costs(by_method[method]) if method in by_method else {}
        columns[method] = cells
        for title, theirs in published_columns(method, row).items() if vtab else ():
            columns[title] = {k: f"{v}" if k in VTAB else f"{v:.2f}" for k, v in theirs.items()}
    table = Table(title="Top-1 accuracy on test, %", title_justify="left")
    table.add_column("task")
    for title in columns:
        table.add_column(title, justify="right")
    last = ""
    means_names = (*GROUPS, "group mean", "mean of 19") if vtab else ()
    for name in [*names, *means_names, "numbers", "bytes", "grid"]:
        section = VTAB[name].group if name in VTAB else "summary"
        if last and section != last:
            table.add_section()
        last = section
        table.add_row(name, *(cells.get(name, "-") for cells in columns.values()))
    return table
