"""The pictures of docs/tutorials/many_tasks.md, from benchmarks/results/hundred_tasks.json.

    python -m benchmarks.plot_hundred_tasks [--record FILE] [--out docs]

It writes hundred_tasks.png, the accuracy of each task, and hundred_tasks_bytes.png, the bytes of
all of them.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.plots.drawing import RESULTS, plt
from fact_jax.report.palette import GRID, INK, SOFT, method_style, styles

PANELS = {
    "digits": "pairs of digits",
    "fashion": "pairs of garments",
    "location": "pairs of places",
}
METHODS = {"linear": "linear probe", "fact_tt": "FacT-TT"}
BYTES = {
    "full": ("whole networks", "full"),
    "fact_tt": ("FacT-TT, float32", "fact_tt"),
    "linear": ("linear heads, float32", "linear"),
    "finished": ("FacT-TT, 4 bits, head 1 bit", "fact_tt"),
}
UNITS = {1e4: "10 kB", 1e5: "100 kB", 1e6: "1 MB", 1e7: "10 MB", 1e8: "100 MB", 1e9: "1 GB"}


def _panel(axes: Axes, rows: list[dict[str, Any]], what: str) -> None:
    """A vertical line for each task, from the probe's accuracy to FacT's, sorted by FacT's."""
    rows = sorted(rows, key=lambda row: (row["fact_tt"], row["linear"]))
    x = range(len(rows))
    low, high = ([row[name] for row in rows] for name in METHODS)
    axes.vlines(x, low, high, color=SOFT, lw=1, alpha=0.5, zorder=1)
    for values, (method, label) in zip((low, high), METHODS.items(), strict=True):
        look = method_style(method)
        axes.plot(x, values, look.marker, ms=4.5, color=look.color, label=label, zorder=2)
    means = [statistics.fmean(values) for values in (low, high)]
    axes.set_title(f"{len(rows)} {what}", fontsize=11, loc="left")
    axes.set_title(f"mean {means[0]:.1f} → {means[1]:.1f} %", fontsize=11, loc="right", color=SOFT)
    axes.set_xticks([])
    axes.set_xlim(-1, len(rows))
    axes.yaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
    axes.grid(axis="y", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def draw_accuracy(record: dict[str, Any], path: Path) -> None:
    """A panel for each data set, each with its own range."""
    groups = {
        what: rows
        for data, what in PANELS.items()
        if (rows := [row for row in record["rows"] if f"_{data}_" in row["task"]])
    }
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(5.6, 0.6 + 1.6 * len(groups)), layout="constrained", squeeze=False
    )
    for axes, (what, rows) in zip(panels[:, 0], groups.items(), strict=True):
        _panel(axes, rows, what)
    figure.supylabel("accuracy on test, %", fontsize=11)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=2, frameon=False, fontsize=11)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def size_text(count: float) -> str:
    """'487 MB', '1.1 MB', '174 kB' or '1.7 kB'."""
    value, unit = (count / 1e6, "MB") if count >= 1e6 else (count / 1e3, "kB")
    return f"{value:.{0 if value >= 9.95 else 1}f} {unit}"


def draw_bytes(record: dict[str, Any], path: Path) -> None:
    """A dot for each kind of files on a logarithmic scale."""
    sizes, count = record["bytes"], len(record["rows"])
    looks = styles([method for _, method in BYTES.values()])
    figure, axes = plt.subplots(figsize=(5.6, 2.5), layout="constrained")
    largest = max(sizes[name] for name in BYTES)
    for y, (name, look) in enumerate(zip(BYTES, looks, strict=True)):
        axes.plot(sizes[name], y, look.marker, ms=9, color=look.color)
        left = sizes[name] > largest / 30
        axes.annotate(
            f"{size_text(sizes[name])}, {size_text(sizes[name] / count)} a task",
            (sizes[name], y),
            (-9 if left else 9, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_yticks(range(len(BYTES)), [label for label, _ in BYTES.values()], fontsize=11)
    axes.set_ylim(len(BYTES) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes[name] for name in BYTES) / 2, 2 * largest)
    low, high = axes.get_xlim()
    ticks = {at: text for at, text in UNITS.items() if low <= at <= high}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title(f"Bytes of {count} tasks, logarithmic", loc="left", fontsize=10, color=SOFT)
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
