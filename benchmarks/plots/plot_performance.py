"""The pictures of docs/performance.md, from what step.py and scaling.py have written.

    python -m benchmarks.plot_performance [--step FILE] [--scaling FILE] [--out docs]

It writes performance_step.png and performance_scaling.png; a file that is not there is left out
with a line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fact_jax.report.palette import SOFT, method_style, styles

TIME, MEMORY = (look.color for look in styles(["fact_tt", "fact_tt"]))  # two shades of FacT-TT
# Methods by what a row's label says of them; the rows of "…" are FacT-TT's.
METHODS = {"FacT-TK": "fact_tk", "LoRA": "lora", "linear": "linear", "full": "full"}
PALE = 0.45  # opacity of PyTorch's bars
# Group: (label, its system in step.json). Ratios are to the last of a group, PyTorch's FacT.
GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "Training step": (
        ("fact-jax: linear probe", "ours: linear"),
        ("fact-jax: FacT-TT 16", "ours: FacT-TT 16"),
        ("fact-jax: … remat=attention", "ours: FacT-TT 16, remat=attention"),
        ("fact-jax: … remat=block", "ours: FacT-TT 16, remat=block"),
        ("fact-jax: FacT-TK 32", "ours: FacT-TK 32"),
        ("fact-jax: full fine-tuning", "ours: full"),
        ("PyTorch: full fine-tuning", "torch: full"),
        ("PyTorch: LoRA 8 (peft)", "torch: peft LoRA 8"),
        ("PyTorch: FacT-TT 16", "torch: FacT-TT 16"),
    ),
    "With dropout 0.1": (
        ("fact-jax: FacT-TT 16", "ours: FacT-TT 16, dropout"),
        ("fact-jax: … remat=block", "ours: FacT-TT 16, dropout, remat=block"),
        ("fact-jax: FacT-TK 32", "ours: FacT-TK 32, dropout"),
        ("PyTorch: FacT-TT 16", "torch: FacT-TT 16, dropout"),
    ),
    "Evaluation": (
        ("fact-jax: merged weights", "ours: evaluation"),
        ("PyTorch: FacT-TT 16", "torch: evaluation"),
    ),
}


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return plt


def device(record: dict[str, Any]) -> str:
    """The device of a record, as people call it."""
    name = record["environment"]["device"]
    return "CPU" if name.endswith("x cpu") else name


def figures(value: float) -> str:
    """Three figures of it, or two decimals if it is less than one."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def draw_step(record: dict[str, Any], path: Path) -> None:
    """Horizontal bars of time and memory, each with its value and its ratio to PyTorch's FacT."""
    plt, systems, settings = pyplot(), record["systems"], record["settings"]
    groups = {
        title: [(label, systems[name]) for label, name in rows if name in systems]
        for title, rows in GROUPS.items()
    }
    groups = {title: rows for title, rows in groups.items() if rows}
    heights = [len(rows) for rows in groups.values()]
    figure, grid = plt.subplots(
        len(groups),
        2,
        figsize=(9, 0.5 + 0.25 * sum(heights) + 0.35 * len(heights)),
        sharex="col",
        sharey="row",
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    figure.get_layout_engine().set(wspace=0.04)
    everyone = [found for rows in groups.values() for _, found in rows]
    unit, scale = ("s", 1.0) if max(min(f["seconds"]) for f in everyone) > 1 else ("ms", 1e3)
    columns = (
        ("time, " + unit, lambda f: scale * min(f["seconds"])),
        ("peak memory, GB", lambda f: f["peak_bytes"] / 1e9),
    )
    for (title, rows), pair in zip(groups.items(), grid, strict=True):
        reference = dict(rows).get("PyTorch: FacT-TT 16")
        for axes, (heading, value) in zip(pair, columns, strict=True):
            right = 1.45 * max(value(f) for f in everyone)
            for y, (label, found) in enumerate(rows):
                reached = value(found)
                method = next((m for word, m in METHODS.items() if word in label), "fact_tt")
                peer = label.startswith("PyTorch")
                weight = "bold" if not peer and method.startswith("fact_") else "normal"
                colour = method_style(method).color
                axes.barh(y, reached, 0.74, color=colour, alpha=PALE if peer else 1.0)
                axes.annotate(
                    figures(reached),
                    (reached, y),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    weight=weight,
                )
                if reference is not None:
                    text = (
                        f"{figures(reached / value(reference))} ×"
                        if found is not reference
                        else "1"
                    )
                    axes.text(right, y, text, ha="right", va="center", weight=weight)
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.tick_params(axis="both", length=0)
            axes.spines[["bottom", "left"]].set_visible(False)
            axes.set_xlim(0, right)
            axes.set_xticks([])
            axes.set_title(f"{title}: {heading}", loc="left", weight="bold", fontsize=9.5)
            if reference is not None:
                axes.set_title("vs. PyTorch", loc="right", fontsize=8, color=SOFT)
    figure.suptitle(
        f"{settings.get('variant', 'vit_b16')}, {settings['batch']} images a step, "
        f"{settings['dtype']}, {device(record)}",
        x=0.01,
        ha="left",
        fontsize=9,
        color=SOFT,
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def draw_scaling(record: dict[str, Any], path: Path) -> None:
    """Small multiples: time and temporary memory of a step, over those of the first value."""
    plt, sweeps, settings = pyplot(), record["sweeps"], record["settings"]
    sweeps = {name: sweep for name, sweep in sweeps.items() if len(sweep["rows"]) > 1}
    columns = min(3, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(3 * columns, 0.6 + 2.5 * lines),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    smallest = largest = 1.0
    for axes, (variable, sweep) in zip(grid.flat, sweeps.items(), strict=False):
        rows = sweep["rows"]
        x = range(len(rows))
        names = {
            "time_ratio": ("time of a step", TIME),
            "memory_ratio": ("temporary memory", MEMORY),
        }
        upper = max(names, key=lambda name: rows[-1][name])
        for name, (label, colour) in names.items():
            ratios = [row[name] for row in rows]
            axes.plot(x, ratios, color=colour, marker="o", ms=4, lw=1.6, label=label)
            up = 1 if name == upper else -1
            axes.annotate(
                f"{figures(ratios[-1])} ×",
                (x[-1], ratios[-1]),
                (5, 6 * up),
                textcoords="offset points",
                color=colour,
                weight="bold",
                va="center",
            )
            smallest, largest = min(smallest, *ratios), max(largest, *ratios)
        if variable != "split":  # there the work stays the same
            proportional = [row["value"] / rows[0]["value"] for row in rows]
            axes.plot(
                x, proportional, color=SOFT, lw=0.8, ls=(0, (3, 3)), zorder=0, label="proportional"
            )
        axes.grid(axis="y", color="#eceef1", lw=0.8)
        axes.set_axisbelow(True)
        title = sweep["title"][0].upper() + sweep["title"][1:]
        if sweep["shared_cores"]:
            title += f"\n(on {sweep['shared_cores']} shared cores)"
        axes.set_title(title, loc="left", weight="bold", fontsize=9.5)
        axes.set_xticks(x, [str(row["value"]) for row in rows])
        axes.set_xlim(-0.2, 1.24 * (len(rows) - 1))
    for axes in list(grid.flat)[len(sweeps) :]:
        axes.set_visible(False)
    first = grid[0, 0]
    first.set_yscale("log", base=2)
    first.set_ylim(smallest / 1.6, 1.6 * largest)
    powers = [i for i in range(-8, 9) if smallest / 1.6 < 2.0**i < 1.6 * largest]
    labels = [f"{2**i} ×" if i >= 0 else f"1/{2**-i} ×" for i in powers]
    first.set_yticks([2.0**i for i in powers], labels)
    first.minorticks_off()
    figure.suptitle(
        f"{settings['variant']}, FacT-TT {settings['rank']}, {settings['batch']} images a step, "
        f"{settings['dtype']}, {device(record)}; over each first value",
        x=0.01,
        ha="left",
        fontsize=9,
        color=SOFT,
    )
    figure.legend(
        *first.get_legend_handles_labels(),
        loc="upper right",
        ncols=3,
        frameon=False,
        borderaxespad=0,
        handlelength=1.6,
        columnspacing=1.2,
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    results = Path("benchmarks/results")
    parser.add_argument("--step", type=Path, default=results / "step.json")
    parser.add_argument("--scaling", type=Path, default=results / "scaling.json")
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
