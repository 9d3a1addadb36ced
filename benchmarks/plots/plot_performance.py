"""The pictures of docs/performance.md, from what step.py and scaling.py have written.

    python -m benchmarks.plot_performance [--step FILE] [--scaling FILE] [--out docs]

It writes performance_step.png and performance_scaling.png. If a result is missing, its picture is
left out with a message.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from benchmarks.plots.drawing import RESULTS, plt
from fact_jax.report.palette import SOFT, method_style, styles

TIME, MEMORY = (look.color for look in styles(["fact_tt", "fact_tt"]))  # two shades of FacT-TT
# Methods by what a row's label says of them; the rows of "…" are FacT-TT's.
METHODS = {"FacT-TK": "fact_tk", "LoRA": "lora", "linear": "linear", "full": "full"}
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
NOTE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 10, "color": SOFT}
PALE = 0.45  # opacity of PyTorch's bars
REFERENCE = "PyTorch: FacT-TT 16"
# Group: (label, its system in step.json). Ratios are to the last of a group, PyTorch's FacT.
GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "Training step": (
        ("linear probe", "ours: linear"),
        ("FacT-TT 16", "ours: FacT-TT 16"),
        ("… remat=attention", "ours: FacT-TT 16, remat=attention"),
        ("… remat=block", "ours: FacT-TT 16, remat=block"),
        ("FacT-TK 32", "ours: FacT-TK 32"),
        ("full fine-tuning", "ours: full"),
        ("PyTorch: full", "torch: full"),
        ("PyTorch: LoRA 8", "torch: peft LoRA 8"),
        ("PyTorch: FacT-TT 16", "torch: FacT-TT 16"),
    ),
    "With dropout 0.1": (
        ("FacT-TT 16", "ours: FacT-TT 16, dropout"),
        ("… remat=block", "ours: FacT-TT 16, dropout, remat=block"),
        ("FacT-TK 32", "ours: FacT-TK 32, dropout"),
        ("PyTorch: FacT-TT 16", "torch: FacT-TT 16, dropout"),
    ),
    "Evaluation": (
        ("FacT-TT 16, merged", "ours: evaluation"),
        ("PyTorch: FacT-TT 16", "torch: evaluation"),
    ),
}


def device(record: dict[str, Any]) -> str:
    """The device of a record, as people call it."""
    name = record["environment"]["device"]
    return "CPU" if name.endswith("x cpu") else name


def figures(value: float) -> str:
    """Three figures of it, or two decimals if it is less than one."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _bars(axes: Axes, rows: list[tuple[str, float]], reference: float | None, right: float) -> None:
    """A bar for each row, with its value, and at the right its ratio to the reference."""
    for y, (label, value) in enumerate(rows):
        method = next((m for word, m in METHODS.items() if word in label), "fact_tt")
        peer = label.startswith("PyTorch")
        weight = "bold" if not peer and method.startswith("fact_") else "normal"
        color, alpha = method_style(method).color, PALE if peer else 1.0
        axes.barh(y, value, 0.74, color=color, alpha=alpha)
        beside = {"textcoords": "offset points", "va": "center", "weight": weight}
        axes.annotate(figures(value), (value, y), (4, 0), **beside)
        if reference is not None:
            text = "" if label == REFERENCE else f"{figures(value / reference)}×"
            axes.text(right, y, text, ha="right", va="center", weight=weight)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="both", length=0)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_xlim(0, right)
    axes.set_xticks([])


def draw_step(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars of time and memory, each with its value and its ratio to PyTorch's FacT."""
    systems, settings = record["systems"], record["settings"]
    groups = {
        name: [(label, systems[system]) for label, system in rows if system in systems]
        for name, rows in GROUPS.items()
    }
    groups = {name: rows for name, rows in groups.items() if rows}
    heights = [len(rows) for rows in groups.values()]
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(groups),
            2,
            figsize=(5.9, 0.5 + 0.26 * sum(heights) + 0.35 * len(heights)),
            sharex="col",
            sharey="row",
            layout="constrained",
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        figure.get_layout_engine().set(wspace=0.05)
        everyone = [measured for rows in groups.values() for _, measured in rows]
        long = max(min(m["seconds"]) for m in everyone) > 1
        unit, scale = ("s", 1.0) if long else ("ms", 1e3)
        columns = {
            "time, " + unit: lambda measured: scale * min(measured["seconds"]),
            "memory, GB": lambda measured: measured["peak_bytes"] / 1e9,
        }
        for (name, rows), pair in zip(groups.items(), grid, strict=True):
            for axes, (heading, value) in zip(pair, columns.items(), strict=True):
                values = [(label, value(measured)) for label, measured in rows]
                reference = dict(values).get(REFERENCE)
                _bars(axes, values, reference, 1.9 * max(map(value, everyone)))
                axes.set_title(heading, loc="left", fontsize=10, color=SOFT)
            beside = {"textcoords": "offset points", "xycoords": "axes fraction", "ha": "right"}
            pair[0].annotate(name, (0, 1), (-4, 5), weight="bold", **beside)
        figure.suptitle(
            f"{settings.get('variant', 'vit_b16')}, {settings['batch']} images, "
            f"{settings['dtype']}, {device(record)}; ×: over PyTorch's FacT-TT",
            **NOTE,
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _lines(axes: Axes, variable: str, sweep: dict[str, Any]) -> list[float]:
    """Time and memory of a sweep over those of its first value; returns all ratios."""
    rows, ratios = sweep["rows"], []
    x = range(len(rows))
    names = {"time_ratio": ("time of a step", TIME), "memory_ratio": ("temporary memory", MEMORY)}
    upper = max(names, key=lambda name: rows[-1][name])
    for name, (label, color) in names.items():
        y = [row[name] for row in rows]
        axes.plot(x, y, color=color, marker="o", ms=4, lw=1.6, label=label)
        beside = {"textcoords": "offset points", "color": color, "weight": "bold", "va": "center"}
        offset = (5, 6 if name == upper else -6)
        axes.annotate(f"{figures(y[-1])} ×", (x[-1], y[-1]), offset, **beside)
        ratios += y
    if variable != "split":  # there the work stays the same
        y = [row["value"] / rows[0]["value"] for row in rows]
        axes.plot(x, y, color=SOFT, lw=0.8, ls=(0, (3, 3)), zorder=0, label="proportional")
    axes.grid(axis="y", color="#eceef1", lw=0.8)
    axes.set_axisbelow(True)
    text = sweep["title"][0].upper() + sweep["title"][1:]
    if sweep["shared_cores"]:
        what, _, how = text.partition(", ")
        text = f"{what} ({sweep['shared_cores']} shared cores):\n{how}"
    axes.set_title(text, loc="left", weight="bold", fontsize=10)
    axes.set_xticks(x, [str(row["value"]) for row in rows])
    axes.set_xlim(-0.2, 1.24 * (len(rows) - 1))
    return ratios


def draw_scaling(record: dict[str, Any], path: Path) -> None:
    """Small multiples: time and temporary memory of a step, over those of the first value."""
    settings = record["settings"]
    sweeps = {name: sweep for name, sweep in record["sweeps"].items() if len(sweep["rows"]) > 1}
    columns = min(2, len(sweeps))
    lines = -(-len(sweeps) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            lines,
            columns,
            figsize=(2.9 * columns, 0.8 + 2.2 * lines),
            sharey=True,
            layout="constrained",
            squeeze=False,
        )
        ratios = [1.0]
        for axes, (variable, sweep) in zip(grid.flat, sweeps.items(), strict=False):
            ratios += _lines(axes, variable, sweep)
        for axes in list(grid.flat)[len(sweeps) :]:
            axes.set_visible(False)
        first, low, high = grid[0, 0], min(ratios) / 1.6, 1.6 * max(ratios)
        first.set_yscale("log", base=2)
        first.set_ylim(low, high)
        powers = [i for i in range(-8, 9) if low < 2.0**i < high]
        labels = [f"{2**i} ×" if i >= 0 else f"1/{2**-i} ×" for i in powers]
        first.set_yticks([2.0**i for i in powers], labels)
        first.minorticks_off()
        figure.supxlabel(
            f"{settings['variant']}, FacT-TT {settings['rank']}, {settings['batch']} images, "
            f"{settings['dtype']}, {device(record)}; over the first value",
            **NOTE,
        )
        figure.legend(
            *first.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=3,
            frameon=False,
            handlelength=1.6,
            columnspacing=1.2,
        )
        figure.savefig(path, dpi=160)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=Path, default=RESULTS / "step.json")
    parser.add_argument("--scaling", type=Path, default=RESULTS / "scaling.json")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    a = parser.parse_args()
    for draw, source, name in (
        (draw_step, a.step, "performance_step.png"),
        (draw_scaling, a.scaling, "performance_scaling.png"),
    ):
        if not source.exists():
            print(f"{name}: left out, there is no {source}.")
            continue
        draw(json.loads(source.read_text()), a.out / name)
        print(f"Wrote {a.out / name}.")


if __name__ == "__main__":
    main()
