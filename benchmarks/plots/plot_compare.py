"""docs/compare.png, from benchmarks/results/compare_quickstart.json: methods down, tasks across."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks.common import NAMES, numbers
from benchmarks.plots.drawing import command, plt
from fact_jax.report.palette import GRID, INK, SOFT, styles


def _names(axes: Axes, methods: list[str], sizes: dict[str, float]) -> None:
    """Each method's name and numbers, left of the first panel."""
    axes.set_yticks(range(len(methods)), [""] * len(methods))
    beside = axes.get_yaxis_transform()  # x from the panel's edge, y by method
    for y, method in enumerate(methods):
        fact = method.startswith("fact_")
        style = {
            "transform": beside,
            "va": "center",
            "color": INK if fact else SOFT,
            "fontweight": "bold" if fact else "normal",
        }
        axes.text(-0.64, y, NAMES.get(method, method), ha="right", **style)
        axes.text(-0.14, y, numbers(sizes[method]), ha="right", **style)
    heading = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
    axes.annotate("stored", (-0.14, 1), (0, 6), color=SOFT, **heading)


def draw(record: dict, path: Path) -> None:
    """Methods by their mean over the tasks, dots with the standard error over seeds."""
    rows = {(r["method"], r["task"]): r for r in record["rows"]}
    tasks = list(dict.fromkeys(task for _, task in rows))
    methods = list(dict.fromkeys(method for method, _ in rows))
    means = {m: statistics.fmean(rows[m, t]["mean"] for t in tasks) for m in methods}
    methods.sort(key=means.__getitem__)
    looks = dict(zip(methods, styles(methods), strict=True))
    sizes = {m: statistics.fmean(rows[m, t]["num_factors"] for t in tasks) for m in methods}
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(5.6, max(0.29 * len(methods) + 0.7, 2.0)),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for y, method in enumerate(methods):
            row, fact = rows[method, task], method.startswith("fact_")
            axis.axhline(y, color=GRID, linewidth=0.5, alpha=0.5, zorder=0)
            axis.errorbar(
                row["mean"],
                y,
                xerr=row["error"] or 0,
                marker=looks[method].marker,
                markersize=6.5 if fact else 5,
                color=looks[method].color,
                capsize=2,
                elinewidth=1.2,
                linestyle="",
            )
        axis.set_title(f"{task}, %", fontsize=10.5, loc="left")
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10], integer=True))
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.margins(x=0.09)
    _names(axes[0, 0], methods, sizes)
    figure.savefig(path, dpi=160)


def main() -> None:
    command(__doc__, draw, "compare_quickstart.json", "docs/compare.png")


if __name__ == "__main__":
    main()
