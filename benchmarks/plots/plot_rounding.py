"""The picture of docs/rounding.md, docs/rounding.png, from benchmarks/results/rounding.json."""

from pathlib import Path
from typing import Any

from benchmarks.plots.drawing import command, plt
from fact_jax.report.averages import stat
from fact_jax.report.palette import method_style

# Label, marker, line and shade of each way; the colour of a fresh training stands apart.
WAYS = {
    "fresh": ("trained at that rank", "D", "-"),
    "weighted, finished": ("by pictures, {} epochs", "o", "-"),
    "plain, finished": ("plain, {} epochs", "s", "-"),
    "weighted": ("by pictures", "o", ":"),
    "plain": ("plain", "s", ":"),
}


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel for each task: accuracy on test against the rank that its factors are rounded to.

    A point is the mean over the seeds, and its bar the standard error.
    """
    values: dict[str, dict[tuple[str, int], list[float]]] = {}
    for row in record["rows"]:
        of_task = values.setdefault(row["task"], {})
        of_task.setdefault((row["way"], row["rank"]), []).append(row["accuracy"])
    figure, panels = plt.subplots(
        1, len(values), figsize=(7.2, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (task, of_task) in zip(panels[0], values.items(), strict=True):
        _panel(axes, of_task, record["finish_epochs"])
        axes.set_title(task, fontsize=10)
    panels[0, 0].set_ylabel("accuracy on test, %")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _panel(axes: Any, values: dict[tuple[str, int], list[float]], epochs: int) -> None:
    """Draws the lines of one task."""
    stats = {place: stat(several) for place, several in values.items()}
    (whole,) = (place for place in stats if place[0] == "trained")
    axes.axhline(stats[whole].mean, color="#8a93a0", lw=1)
    for name, (label, marker, line) in WAYS.items():
        points = {rank: stats[way, rank] for way, rank in sorted(stats) if way == name}
        points[whole[1]] = stats[whole]
        color = method_style("linear" if name == "fresh" else "fact_tt").color
        axes.errorbar(
            list(points),
            [point.mean for point in points.values()],
            [point.error or 0.0 for point in points.values()],
            linestyle=line,
            marker=marker,
            markersize=4,
            color=color,
            label=label.format(epochs),
        )
    axes.set_xticks(sorted({rank for _, rank in stats}))
    axes.set_xlabel("rank")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    command(__doc__, draw, "rounding.json", "docs/rounding.png")


if __name__ == "__main__":
    main()
