"""One look for each system in all figures: colour, marker and line.

Seven colours after Okabe and Ito (jfly.uni-koeln.de/color), told apart with the common forms of
colour blindness; orange and sky blue a little darker and grey for black, so that all can be seen on
white and on near-black. With the markers 16 systems and more look different.
"""

from __future__ import annotations

from typing import Any, NamedTuple

COLOURS = ("#0072b2", "#d98a00", "#009e73", "#cc6fa5", "#3f9fdb", "#d55e00", "#808080")
MARKERS = "os^Dv*PX<>phd8Hx"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))

# Of figures: in the page these become the colours of its theme.
INK, SOFT, GRID, PAPER = "#1b1f24", "#5d6570", "#dfe3e8", "#fefefe"


class Style(NamedTuple):
    """Arguments of matplotlib's `plot`."""

    color: str
    marker: str
    linestyle: Any


def style(index: int) -> Style:
    """Of the system at this place in the report."""
    return Style(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        LINES[index // len(COLOURS) % len(LINES)],
    )
