"""docs/quickstart.png, from benchmarks/results/quickstart.json."""

from pathlib import Path

from benchmarks.plots.drawing import command, plt
from fact_jax.report.palette import method_style

NAMES = {"linear": "linear probe", "fact_tt": "FacT-TT", "fact_tk": "FacT-TK"}


def draw(record: dict, path: Path) -> None:
    """Grouped bars, accuracy in % with the standard error over seeds."""
    rows = {(r["task"], r["method"]): r for r in record["rows"]}
    tasks = list(dict.fromkeys(task for task, _ in rows))
    methods = [m for m in NAMES if (tasks[0], m) in rows]
    width = 0.8 / len(methods)
    figure, axes = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    for i, method in enumerate(methods):
        x = [t + (i - (len(methods) - 1) / 2) * width for t in range(len(tasks))]
        means = [rows[task, method]["mean"] for task in tasks]
        errors = [rows[task, method]["error"] or 0 for task in tasks]
        axes.bar(
            x,
            means,
            width * 0.92,
            yerr=errors,
            label=NAMES[method],
            color=method_style(method).color,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for at, mean, error in zip(x, means, errors, strict=True):
            axes.text(at, mean + error + 1.2, f"{mean:.1f}", ha="center", fontsize=9)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=11)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy on test, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.legend(
        frameon=False,
        ncols=len(methods),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        handlelength=1.2,
        columnspacing=1.4,
    )
    figure.savefig(path, dpi=160)


def main() -> None:
    command(__doc__, draw, "quickstart.json", "docs/quickstart.png")


if __name__ == "__main__":
    main()
