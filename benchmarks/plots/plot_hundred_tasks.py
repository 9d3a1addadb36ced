"""The pictures of docs/tutorials/many_tasks.md, from benchmarks/results/hundred_tasks.json.

    python -m benchmarks.plot_hundred_tasks [--record FILE] [--out docs]

It writes hundred_tasks.png, the accuracy of each task, and hundred_tasks_bytes.png, the bytes of
all of them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.plots.drawing import RESULTS, plt
from fact_jax.report.palette import GRID, INK, SOFT, method_style

PANELS = {"digits": "Pairs of digits", "fashion": "Pairs of garments", "location": "Places"}
BYTES = {
    "full": ("whole networks", "full"),
    "fact_tt": ("FacT-TT, float32", "fact_tt"),
    "finished": ("FacT-TT, 4 bits", "fact_tt"),
    "linear": ("linear heads", "linear"),
}


def data_of(task: str) -> str:
    return task.split("_")[1]


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A vertical line for each task, from the probe's accuracy to FacT's, sorted by FacT's."""
    rows = sorted(rows, key=lambda row: (row["fact_tt"], row["linear"]))
    x = range(len(rows))
    low, high = ([row[name] for row in rows] for name in ("linear", "fact_tt"))
    axes.vlines(x, low, high, color=SOFT, lw=0.8, alpha=0.45, zorder=1)
    for values, method, label in ((low, "linear", "linear probe"), (high, "fact_tt", "FacT-TT")):
        look = method_style(method)
        axes.plot(x, values, look.marker, ms=4, color=look.color, label=label, zorder=2)
    axes.set_xticks([])
    axes.set_xlim(-1, len(rows))
    axes.grid(axis="y", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def draw_accuracy(record: dict[str, Any], path: Path) -> None:
    """A panel for each data set, as wide as it has tasks."""
    groups = {
        title: rows
        for data, title in PANELS.items()
        if (rows := [row for row in record["rows"] if data_of(row["task"]) == data])
    }
    figure, panels = plt.subplots(
        1,
        len(groups),
        figsize=(7.2, 3.3),
        sharey=True,
        layout="constrained",
        squeeze=False,
        gridspec_kw={"width_ratios": [max(len(rows), 14) for rows in groups.values()]},
    )
    for axes, (title, rows) in zip(panels[0], groups.items(), strict=True):
        _panel(axes, rows)
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_xlabel(f"{len(rows)} tasks", color=SOFT)
    panels[0, 0].set_ylabel("accuracy on test, %", fontsize=11)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=2, frameon=False, fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def size_text(count: float) -> str:
    """'484 MB', '1.3 MB' or '95 kB'."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.{0 if count >= 1e7 else 1}f} MB"


def draw_bytes(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars on a logarithmic scale."""
    sizes, count = record["bytes"], len(record["rows"])
    figure, axes = plt.subplots(figsize=(7.2, 2.3), layout="constrained")
    for y, (name, (_, method)) in enumerate(BYTES.items()):
        axes.barh(y, sizes[name], 0.7, color=method_style(method).color)
        text = f"{size_text(sizes[name])}, {size_text(sizes[name] / count)} a task"
        axes.annotate(
            text, (sizes[name], y), (6, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set_yticks(range(len(BYTES)), [label for label, _ in BYTES.values()], fontsize=11)
    axes.set_ylim(len(BYTES) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes[name] for name in BYTES) / 8, 12 * max(sizes.values()))
    axes.set_xticks([])
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(
        f"Bytes of {count} tasks, on a logarithmic scale", loc="left", fontsize=10, color=SOFT
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=RESULTS / "hundred_tasks.json")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    a = parser.parse_args()
    record = json.loads(a.record.read_text())
    for draw, name in ((draw_accuracy, "hundred_tasks"), (draw_bytes, "hundred_tasks_bytes")):
        draw(record, a.out / f"{name}.png")
        print(f"Wrote {a.out / name}.png.")


if __name__ == "__main__":
    main()
