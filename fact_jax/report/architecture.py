"""A found architecture (NOAH's widths by family and block), as text and as a picture."""

from __future__ import annotations

from typing import Any

from etils import epath

from fact_jax.report.figures import save_figure

_BARS = " ▁▂▃▄▅▆▇█"
FAMILIES = ("prompts", "lora", "adapters")


def architecture_text(search: dict[str, Any]) -> str:
    """A line a family: a bar for each block, and the widths."""
    widest = max(max(row) for row in search["best"]) or 1
    lines = [
        f"  {name:<9}{''.join(_BARS[-(-width * 8 // widest)] for width in row)}  "
        + " ".join(str(width) for width in row)
        for name, row in zip(FAMILIES, search["best"], strict=True)
    ]
    tried = search["history"][-1]["tried"]
    return "\n".join(
        [
            f"  found, of {tried} tried: {search['fitness']:.1f} % on validation data with the "
            "supernet's factors",
            *lines,
        ]
    )


def draw_architecture(search: dict[str, Any], path: epath.Path) -> None:
    """The widths as bars, a row a family, and the best fitness by generation. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplot_mosaic([[name, "curve"] for name in FAMILIES], width_ratios=(2, 1))
    colours = ("#4269d0", "#efb118", "#3ca951")
    widest = max(max(row) for row in search["best"]) or 1
    for name, row, colour in zip(FAMILIES, search["best"], colours, strict=True):
        axis = axes[name]
        bars = axis.bar(range(len(row)), row, color=colour, width=0.8)
        axis.bar_label(bars, fontsize=8)
        axis.set_ylim(0, 1.25 * widest)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_yticks([])
        axis.set_xticks(range(len(row)) if name == FAMILIES[-1] else [])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[FAMILIES[-1]].set_xlabel("block")
    axis = axes["curve"]
    best = [generation["best"] for generation in search["history"]]
    axis.plot(range(1, len(best) + 1), best, color="black", marker="o", markersize=3)
    axis.set_title("best so far on validation data, %", loc="left", fontsize=10)
    axis.set_xlabel("generation")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
