"""One look for each method in all figures of reports and docs: colour, marker and line.

The first seven colours are after Okabe and Ito (jfly.uni-koeln.de/color), told apart with the
common forms of colour blindness; orange and sky blue are a little darker and grey stands for black,
so that all can be seen on white and on near-black. Colours, markers and lines together tell 16
methods apart.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

COLOURS = (
    *("#0072b2", "#d98a00", "#009e73", "#cc6fa5", "#3f9fdb", "#d55e00", "#808080"),
    *("#7a67d8", "#8f8a1e", "#2f9aa0", "#b85c9e", "#b07a4f", "#d0506a", "#8c6d46"),
    *("#5b8f3c", "#b3662e"),
)
_BASE = 7  # of Okabe and Ito
MARKERS = "os^Dv*PX<>phd8Hx"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))

# Colours of figures; the page replaces them by those of its theme.
INK, SOFT, GRID, PAPER = "#1b1f24", "#5d6570", "#dfe3e8", "#fefefe"


class Style(NamedTuple):
    """Arguments of matplotlib's `plot`."""

    color: str
    marker: str
    linestyle: Any


# A method's place decides its look, so that it is the same in every figure.
_METHODS = (
    *("fact_tt", "fact_tk", "lora", "vpt_deep", "fact_cp", "adaptformer", "linear"),
    *("fact_shared", "noah", "adapter", "vpt_shallow", "convpass", "repadapter", "full"),
    *("ssf", "bitfit", "metatt", "metatt_heads", "lorta", "cara", "efft", "uni_lora"),
    *("adapter_plus", "dora", "metatt_tasks"),
)
_SHADES = (0.0, 0.4, -0.35, 0.2)  # shades of one method's systems, towards white or black


def style(index: int) -> Style:
    """The look of the method at this place."""
    return Style(
        COLOURS[index % len(COLOURS)],
        MARKERS[index % len(MARKERS)],
        LINES[index // _BASE % len(LINES)],
    )


def method_style(method: str) -> Style:
    """The look of a method that this package has."""
    return style(_METHODS.index(method))


def styles(methods: Iterable[str]) -> list[Style]:
    """Looks of systems by their methods, all different for up to 16 methods. Several systems of
    one method have shades of its colour; methods from outside this package have the looks of
    absent methods."""
    methods = list(methods)
    places = {method: _METHODS.index(method) for method in methods if method in _METHODS}
    free = [p for p in range(len(_METHODS)) if p not in places.values()] or [0]
    others = dict.fromkeys(method for method in methods if method not in _METHODS)
    places |= {method: free[-1 - i % len(free)] for i, method in enumerate(others)}
    seen, looks = Counter[str](), []
    for method in methods:
        looks.append(_variant(places[method], seen[method]))
        seen[method] += 1
    return looks


def _variant(place: int, number: int) -> Style:
    """The look of system number `number` of the method at this place."""
    look, shade = style(place), _SHADES[number % len(_SHADES)]
    parts = (int(look.color[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(p + shade * (255 - p) if shade > 0 else p * (1 + shade)) for p in parts)
    return Style(
        "#" + "".join(f"{part:02x}" for part in mixed),
        MARKERS[(place + number) % len(MARKERS)],
        LINES[(LINES.index(look.linestyle) + number) % len(LINES)],
    )
