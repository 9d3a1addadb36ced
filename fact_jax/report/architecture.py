"""An architecture that a search found (NOAH's widths by family and block), as text and picture."""

import itertools
from typing import Any

from etils import epath

from fact_jax.report.figures import WIDE, new_figure, save_figure, tidy
from fact_jax.report.palette import COLOURS, INK, SOFT
from fact_jax.sweep.result import Search
from fact_jax.tuning import NOAH

_BARS = " ▁▂▃▄▅▆▇█"


def _rows(search: Search) -> dict[str, list[int]]:
    """Widths by family; older records do not name their families, which are NOAH's."""
    return dict(zip(search.get("families", NOAH.families), search["best"], strict=True))


def architecture_text(search: Search) -> str:
    """One line per family: a bar for each block, then the widths."""
    widest = max(max(row) for row in search["best"]) or 1
    lines = [
        f"  {name:<9}{''.join(_BARS[-(-width * 8 // widest)] for width in row)}  "
        + " ".join(str(width) for width in row)
        for name, row in _rows(search).items()
    ]
    tried = search["history"][-1]["tried"]
    return "\n".join(
        [
            f"  found, of {tried} tried: {search['fitness']:.1f} % on validation data with the "
            "supernet's factors",
            *lines,
        ]
    )


def architecture_figure(search: Search) -> Any:
    """Figure of the widths, one row of bars per family, and of the best fitness by generation.

    Needs matplotlib.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(WIDE, 4.0)
    rows = _rows(search)
    axes = figure.subplot_mosaic([[name, "curve"] for name in rows], width_ratios=(2, 1))
    widest = max(max(row) for row in search["best"]) or 1
    for (name, row), colour in zip(rows.items(), itertools.cycle(COLOURS), strict=False):
        axis = axes[name]
        tidy(axis, name, grid="")
        bars = axis.bar(range(len(row)), row, color=colour, width=0.8)
        axis.bar_label(bars, fontsize=8, color=INK)
        axis.set_ylim(0, 1.25 * widest)
        axis.set_yticks([])
        axis.set_xticks([])
        axis.spines["left"].set_visible(False)
    axis.set_xticks(range(len(row)))
    axis.set_xlabel("block")
    axis = axes["curve"]
    tidy(axis, "best so far on validation data, %")
    best = [generation["best"] for generation in search["history"]]
    axis.plot(range(1, len(best) + 1), best, color=SOFT, marker="o", markersize=3)
    axis.set_xlabel("generation")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_architecture(search: Search, path: epath.Path) -> None:
    """Writes `architecture_figure` in the format of the file's suffix."""
    save_figure(architecture_figure(search), path)
