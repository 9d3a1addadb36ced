"""The picture of docs/dictionary.md, dictionary.png, from benchmarks/results/dictionary.json."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import NullFormatter

from benchmarks.plots.drawing import command, plt
from fact_jax.report.palette import method_style

TITLES = {"offline": "three tasks, each new in turn", "pairs": "20 new pairs, of 100"}
WAYS = {
    "own": ("factors of its own", "D"),
    "learnt": ("learnt by other tasks", "o"),
    "post hoc": ("made of other tasks", "s"),
    "random": ("random directions", "x"),
}
TICKS = (1000, 2000, 5000, 10_000, 20_000, 40_000)
NAMES = {"fact_tt": "FacT-TT", "fact_tk": "FacT-TK"}


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel for each suite: accuracy of new tasks against the bytes of a task."""
    suites = [suite for suite in TITLES if suite in record]
    figure, panels = plt.subplots(
        1, len(suites), figsize=(7.2, 3.6), layout="constrained", squeeze=False
    )
    for axes, suite in zip(panels[0], suites, strict=True):
        rows = record[suite]["rows"]
        (probe,) = (row for row in rows if row["method"] == "linear")
        axes.axhline(probe["accuracy"], color="#8a93a0", lw=1)
        axes.annotate(
            "linear probe",
            (1, probe["accuracy"]),
            (-2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color="#6b7480",
        )
        for method, name in NAMES.items():
            for way, (label, marker) in WAYS.items():
                points = sorted(
                    (row["small_bytes"], row["accuracy"])
                    for row in rows
                    if (row["method"], row["way"]) == (method, way)
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        marker=marker,
                        linestyle=":" if way == "random" else "-",
                        color=method_style(method).color,
                        markersize=6,
                        label=f"{name}, {label}",
                    )
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(TICKS, [f"{ticks / 1000:g} kB" for ticks in TICKS])
        axes.set_xlim(900, 50_000)
        axes.set_title(TITLES[suite], fontsize=10)
        axes.set_xlabel("bytes of a task, 4 bits a factor, 1 of the head", fontsize=9)
    panels[0, 0].set_ylabel("accuracy of new tasks on test, %")
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        frameon=False,
        loc="outside lower center",
        ncols=2,
        fontsize=9,
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    command(__doc__, draw, "dictionary.json", "docs/dictionary.png")


if __name__ == "__main__":
    main()
