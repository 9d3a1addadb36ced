"""docs/leaderboard.png, drawn by `python -m benchmarks.leaderboard`: accuracy against bytes."""

import itertools
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from benchmarks.plots.drawing import plt
from fact_jax.report.palette import GRID, INK, SOFT, styles

# Places of a label beside its point, in points of the page; the first free one is taken.
_OFFSETS = [
    (x, y, "left" if x > 0 else "right" if x < 0 else "center")
    for far in (1, 2, 3, 4.5)
    for x, y in ((7, 0), (-7, 0), (5, 7 * far), (5, -7 * far), (-5, 7 * far), (-5, -7 * far))
]
FAR = 2.0  # points below the front and the linear probe, where the picture ends


class Point(NamedTuple):
    """A point of the picture: an arm of the study by its title.

    Attributes:
      method: the name of its method, which chooses the look.
      error: standard error of the accuracy in points; None where there is none.
      front: whether it is on the Pareto front.
    """

    method: str
    title: str
    bytes: float
    accuracy: float
    error: float | None
    front: bool


def _size(value: float) -> str:
    """'8 kB', '1.2 MB'."""
    return f"{value / 1e3:.0f} kB" if value < 1e6 else f"{value / 1e6:.0f} MB"


def _label(axes: Axes, entry: Point, taken: list[Bbox], lines: list[Bbox]) -> None:
    """Writes an entry's name where it covers nothing, or no more than lines."""
    figure, front = axes.figure, entry.front
    renderer = figure.canvas.get_renderer()
    style = {
        "fontsize": 8 if front else 7,
        "fontweight": "bold" if front else "normal",
        "color": INK if front else SOFT,
        "textcoords": "offset points",
        "va": "center",
        "path_effects": [withStroke(linewidth=2.5, foreground="white")],  # parts it from lines
    }
    point = entry.bytes, entry.accuracy
    # The line comes to a point of the front from below, and leaves it to the right.
    offsets = [(4, 10, "right"), (0, 10, "center"), *_OFFSETS] if front else _OFFSETS
    places = [(*offset, covered) for covered in ([*taken, *lines], taken) for offset in offsets]
    for x, y, side, covered in places:
        text = axes.annotate(entry.title, point, (x, y), ha=side, **style)
        box = text.get_window_extent(renderer)
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
        if inside and not any(box.overlaps(other) for other in covered):
            if abs(y) > 10:
                text.remove()
                line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkB": 3}
                text = axes.annotate(entry.title, point, (x, y), ha=side, arrowprops=line, **style)
            taken.append(box)
            return
        text.remove()


def _points(axes: Axes, board: list[Point]) -> None:
    """Draws the points with their errors over seeds, and the front as a line of steps."""
    looks = styles(entry.method for entry in board)
    for entry, look in zip(board, looks, strict=True):
        axes.errorbar(
            entry.bytes,
            entry.accuracy,
            yerr=entry.error or 0,
            marker=look.marker,
            color=look.color,
            markersize=7 if entry.front else 5,
            elinewidth=1,
            linestyle="",
        )
    front = sorted((e.bytes, e.accuracy) for e in board if e.front)
    sizes, values = zip(*front, strict=True)
    axes.step(sizes, values, where="post", color=INK, linewidth=1, alpha=0.6, zorder=0)


def at_the_foot(board: list[Point]) -> list[Point]:
    """The board with what is far below front and probe at the foot, its value in its title.

    One training that broke down would else press all others together.
    """
    foot = min(e.accuracy for e in board if e.front or e.method == "linear") - FAR
    return [
        entry
        if entry.accuracy >= foot
        else entry._replace(accuracy=foot, error=None, title=f"{entry.title}: {entry.accuracy:.1f}")
        for entry in board
    ]


def draw(board: list[Point], path: Path) -> None:
    """Draws the board; a picture that says so, if no arm has all tasks yet."""
    figure, axes = plt.subplots(figsize=(8, 6.4), layout="constrained")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.08)
    axes.set_xlabel("bytes of a task's file, with its head")
    axes.set_ylabel("accuracy on test, %, mean of the groups of tasks")
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if board:
        board = at_the_foot(board)
        _points(axes, board)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
        figure.canvas.draw()
        taken = [_around(axes, entry) for entry in board]
        lines = _lines(axes, board)
        for entry in sorted(board, key=lambda e: not e.front):
            _label(axes, entry, taken, lines)
    else:
        middle = {"transform": axes.transAxes, "ha": "center", "color": SOFT}
        axes.text(0.5, 0.5, "no method has all tasks yet", **middle)
    figure.savefig(path, dpi=160)


def _around(axes: Axes, entry: Point) -> Bbox:
    """The place of an entry's marker on the page."""
    x, y = axes.transData.transform((entry.bytes, entry.accuracy))
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)


def _lines(axes: Axes, board: list[Point]) -> list[Bbox]:
    """The places of the front's line and of the bars of errors on the page."""
    front = sorted((e.bytes, e.accuracy) for e in board if e.front)
    ends = [
        (e.bytes, e.accuracy - e.error, e.bytes, e.accuracy + e.error) for e in board if e.error
    ]
    for (x, y), (to_x, to_y) in itertools.pairwise(front):
        ends += [(x, y, to_x, y), (to_x, y, to_x, to_y)]
    places = []
    for x, y, to_x, to_y in ends:
        start, end = axes.transData.transform([(x, y), (to_x, to_y)])
        places.append(Bbox([start - 1, end + 1]))
    return places
