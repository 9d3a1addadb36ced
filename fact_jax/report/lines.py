"""Figures of lines, with a panel a task, a data set, or one for all."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fact_jax.report.figures import NARROW, WIDE, figure_text, legend, new_figure, panels, tidy
from fact_jax.report.palette import SOFT, Style

_MOST_TICKS = 8  # that stand at the points themselves, on a logarithmic axis
Look = Mapping[str, Any]  # arguments of matplotlib's `plot`


class Point(NamedTuple):
    """A point of a line; `error` is half the length of its bar."""

    x: float
    y: float
    error: float | None = None


class Line(NamedTuple):
    """A line of a panel."""

    points: Sequence[Point]
    look: Look


def line_look(style: Style, marker: bool = True) -> dict[str, Any]:
    """The look of a system's line, with or without its marker."""
    look = {**style._asdict(), "markersize": 5, "linewidth": 1.4}
    return look if marker else {**look, "marker": ""}


@dataclasses.dataclass(frozen=True)
class LineFigure:
    """A figure of lines, to be drawn in any width.

    Attributes:
      panels: lines by the panel's title.
      labels: those of the axes, x and y.
      entries: the looks in the legend by their names.
      log: the axes that are logarithmic, where their values allow it.
    """

    panels: Mapping[str, Sequence[Line]]
    labels: tuple[str, str]
    entries: Mapping[str, Look]
    log: str = ""

    def wide(self) -> Any:
        """The figure in the width of the page's column. Needs matplotlib."""
        return self._draw(WIDE, 5 if len(self.panels) > 8 else 3)

    def narrow(self) -> Any:
        """The figure for a phone."""
        return self._draw(NARROW, 2 if len(self.panels) > 4 else 1)

    def _draw(self, width: float, columns: int) -> Any:
        from matplotlib.lines import Line2D

        columns = min(columns, len(self.panels))
        labels = {name: figure_text(name) for name in self.entries}
        longest = max(map(len, labels.values()))
        per_line = max(1, int(width / (0.7 + 0.085 * longest)))
        head = 0.5 + 0.2 * -(-len(labels) // per_line)
        height = min(max(0.78 * width / columns, 1.5), 3.2) * -(-len(self.panels) // columns)
        figure = new_figure(width, height + head)
        for axis, (title, lines) in zip(
            panels(figure, len(self.panels), columns, sharex=True),
            self.panels.items(),
            strict=True,
        ):
            tidy(axis, title)
            for line in lines:
                x, y, errors = zip(*line.points, strict=True)
                bars = {"yerr": [e or 0 for e in errors], "capsize": 2} if any(errors) else {}
                axis.errorbar(x, y, **bars, **line.look)
            self._scale(axis, [point.y for line in lines for point in line.points])
            axis.tick_params(labelbottom=True)
        figure.supxlabel(self.labels[0], fontsize=9.5, color=SOFT)
        figure.supylabel(self.labels[1], fontsize=9.5, color=SOFT)
        entries = self.entries.items()
        legend(figure, [Line2D([], [], **k, label=labels[name]) for name, k in entries], per_line)
        return figure

    def _scale(self, axis: Any, heights: Sequence[float]) -> None:
        """Whole epochs, and logarithmic axes where they are asked for and the values allow them."""
        from matplotlib.ticker import MaxNLocator

        every = (
            point.x for lines in self.panels.values() for line in lines for point in line.points
        )
        places = sorted(set(every))
        if self.labels[0] == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        if "x" in self.log and places[0] > 0:
            axis.set_xscale("log")
            if len(places) <= _MOST_TICKS:
                axis.set_xticks(places, [f"{x:g}" for x in places], fontsize=8)
        if "y" in self.log and 0 < 20 * min(heights) < max(heights):
            axis.set_yscale("log")
        axis.tick_params(which="minor", length=0, labelleft=False, labelbottom=False)
