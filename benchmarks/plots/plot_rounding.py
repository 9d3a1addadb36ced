"""The picture of docs/rounding.md, docs/rounding.png, from benchmarks/results/rounding.json."""

from pathlib import Path
from typing import Any

from benchmarks.plots.drawing import command, plt
from fact_jax.report.averages import stat
from fact_jax.report.palette import method_style

WAYS = {"weighted": ("by pictures", "o", "-"), "plain": ("plain", "s", "--")}


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel for each task: accuracy on test against the rank that its factors are rounded to."""
    rows = record["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(7.2, 2.8), sharey=True, layout="constrained", squeeze=False
    )
    color = method_style("fact_tt").color
    for axes, task in zip(panels[0], tasks, strict=True):
        values: dict[tuple[str, int], list[float]] = {}
        for row in rows:
            if row["task"] == task:
                values.setdefault((row["way"], row["rank"]), []).append(row["accuracy"])
        means = {key: stat(several).mean for key, several in values.items()}
        (whole,) = (key for key in means if key[0] == "trained")
        axes.axhline(means[whole], color="#8a93a0", lw=1)
        for way, (label, marker, line) in WAYS.items():
            points = sorted((rank, mean) for (name, rank), mean in means.items() if name == way)
            points.append((whole[1], means[whole]))
            axes.plot(*zip(*points, strict=True), line, marker=marker, color=color, label=label)
        axes.set_title(task, fontsize=10)
        axes.set_xticks(sorted({rank for _, rank in means}))
        axes.set_xlabel("rank")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("accuracy on test, %")
    panels[0, -1].legend(frameon=False, loc="lower right", title="rounding")
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    command(__doc__, draw, "rounding.json", "docs/rounding.png")


if __name__ == "__main__":
    main()
