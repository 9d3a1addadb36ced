"""Few-shot results: a table and the figure accuracy against shots, with the published points."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.table import Table

from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.tasks import get_task
from fact_jax.report.published import published
from fact_jax.report.tables import mean_and_error

# Our methods' rows in the published numbers, and data sets of another name there.
_ROWS = {"fact_tt": "fact_tt_16", "lora": "lora", "adapter": "adapter", "noah": "noah",
         "vpt_deep": "vpt", "adaptformer": "adaptformer"}  # fmt: skip
_SETS = {"oxford_flowers": "oxford_flowers102"}
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")

Curves = dict[str, dict[str, dict[int, list[float]]]]


def few_shot_curves(results: list[dict[str, Any]]) -> Curves:
    """Accuracies of the seeds by data set, method and shots; other tasks' are left out."""
    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for result in results:
        task = get_task(result["task"])
        if isinstance(task, FewShotTask):
            curves[task.dataset][result["method"]][task.shots].append(result["accuracy"])
    return curves


def published_points(dataset: str, method: str) -> dict[int, float]:
    """Published accuracy by shots; empty where none is known."""
    shots = published()["fewshot_fgvc"].get(_ROWS.get(method, ""), {}).get("shots", {})
    name = _SETS.get(dataset, dataset)
    return {int(k): row[name] for k, row in shots.items() if name in row}


def few_shot_table(results: list[dict[str, Any]]) -> Table:
    """Data sets and methods down, shots across: mean in % +- standard error over the seeds."""
    curves = few_shot_curves(results)
    shots = sorted({k for rows in curves.values() for row in rows.values() for k in row})
    table = Table(title="Top-1 accuracy on test, %", title_justify="left")
    for name in ("data", "method"):
        table.add_column(name)
    for k in shots:
        table.add_column(f"{k} shot{'s' if k > 1 else ''}", justify="right")
    for dataset, rows in curves.items():
        for method, row in rows.items():
            table.add_row(dataset, method, *(_text(row.get(k)) for k in shots))
            if known := published_points(dataset, method):
                texts = (f"{known[k]:.1f}" if k in known else "-" for k in shots)
                table.add_row("", "  published", *texts, style="dim")
        table.add_section()
    methods = {m: None for rows in curves.values() for m in rows}
    for method in methods if len(curves) > 1 else ():
        cells = (_mean([rows.get(method, {}).get(k) for rows in curves.values()]) for k in shots)
        table.add_row("mean", method, *("-" if v is None else f"{v:.1f}" for v in cells))
    return table


def _text(values: list[float] | None) -> str:
    if not values:
        return "-"
    mean, error = mean_and_error(values)
    return f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"


def _mean(parts: list[list[float] | None]) -> float | None:
    """Mean over data sets; None if one is missing."""
    if not parts or not all(parts):
        return None
    return statistics.fmean(statistics.fmean(values) for values in parts if values)


def draw_few_shot(results: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes fewshot.png and fewshot.svg; a panel a data set. Needs matplotlib."""
    from matplotlib.figure import Figure

    curves = few_shot_curves(results)
    methods = list({m: None for rows in curves.values() for m in rows})
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (dataset, by_method) in zip(axes, curves.items(), strict=False):
        for method, row in by_method.items():
            colour = _COLOURS[methods.index(method) % len(_COLOURS)]
            shots = sorted(row)
            points = [mean_and_error(row[k]) for k in shots]
            axis.errorbar(
                shots, [mean for mean, _ in points], [error or 0 for _, error in points],
                color=colour, marker="o", markersize=4, capsize=2, label=method,
            )  # fmt: skip
            if known := published_points(dataset, method):
                axis.plot(
                    list(known), list(known.values()), color=colour, linestyle="--", marker="s",
                    markersize=3, linewidth=1, alpha=0.7, label=f"{method}, published",
                )  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = sorted({k for row in by_method.values() for k in row})
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.set_xlabel("training images a class")
        axis.set_title(dataset, loc="left", fontsize=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes:  # what is left of the last row
        axis.set_visible(False)
    figure.supylabel("accuracy on test, %", fontsize=10)
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center",
        ncols=min(4, len(handles)), frameon=False, fontsize=9,
    )  # fmt: skip
    paths = [folder / f"fewshot.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
