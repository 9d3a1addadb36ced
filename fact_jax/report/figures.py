"""The look that all figures share, and how they become files."""

import io
import re
import warnings
from typing import Any

from etils import epath

from fact_jax.report.palette import GRID, INK, PAPER, SOFT
from fact_jax.text import printable_line

WIDE, NARROW = 9.4, 3.6  # inches: the width of the page's column, and of a phone
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and the page's font
    "path.simplify": True,
    "path.simplify_threshold": 1.0,
}
# Colours of figures that become variables of the page's theme.
THEME = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--panel)"}


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, without a background."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
    return Figure(figsize=(width, height), layout=layout, facecolor="none")


def tidy(axis: Any, title: str = "", grid: str = "both") -> None:
    """Gives an axis a title at its left, no box, soft ticks, and a light grid behind the data."""
    axis.set_facecolor("none")
    axis.set_title(title, loc="left", fontsize=10.5, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(SOFT)
    axis.tick_params(colors=SOFT, which="both", labelsize=9, width=0.6, length=3)
    axis.xaxis.label.set(color=SOFT, fontsize=9.5)
    axis.yaxis.label.set(color=SOFT, fontsize=9.5)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(axis=grid, color=GRID, linewidth=0.7)


def panels(figure: Any, count: int, columns: int, **shared: bool) -> list[Any]:
    """Adds `count` axes to a figure, in rows of at most `columns`."""
    lines = -(-count // columns)
    axes = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


def legend(figure: Any, handles: list[Any], columns: int) -> None:
    """Puts a legend above the panels, where it can hide no data."""
    columns = max(1, min(columns, len(handles)))
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 2.4}
    look |= {"columnspacing": 1.4, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, **look)


def figure_text(text: str, longest: int = 60) -> str:
    """A name for a figure, as one short line. Matplotlib would read `$` as mathematics and hide a
    label that begins with `_`; both are escaped."""
    text = printable_line(text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", r"\$")


def save_figure(figure: Any, path: epath.Path) -> None:
    """Writes a matplotlib figure in the format of its file's suffix, also to a bucket."""
    suffix = path.suffix.removeprefix(".")
    if suffix == "svg":
        path.write_text(on_white(svg_text(figure, path.stem)))
        return
    path.write_bytes(figure_bytes(figure, suffix))


def figure_bytes(figure: Any, suffix: str) -> bytes:
    """A matplotlib figure on white, in the format of the suffix."""
    return _saved(figure, format=suffix, dpi=150, facecolor="white")


def svg_text(figure: Any, name: str) -> str:
    """The figure as SVG without a background, the same at every call, its paths rounded to a tenth
    of a point; ids depend on the name, so that several figures can stand in one page."""
    import matplotlib

    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        text = _saved(figure, format="svg", facecolor="none", metadata={"Date": None}).decode()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return re.sub(r'(?<= )(d|x|y|x1|x2|y1|y2|points)="([^"]*)"', _rounded, text)


def _saved(figure: Any, **options: Any) -> bytes:
    """The figure's file, in installed fonts that have its characters.

    A browser has fonts of its own for an SVG; a PNG shows boxes for a script without any font.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    fonts = _fonts({ord(c) for text in texts for c in text.get_text()})
    for text in texts:
        text.set_family(fonts)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support")
        figure.savefig(content, **options)
    return content.getvalue()


def _fonts(characters: set[int]) -> list[str]:
    """Matplotlib's font, and others for the characters that it lacks."""
    from matplotlib import font_manager

    fonts = ["DejaVu Sans"]
    missing = characters - set(font_manager.get_font(font_manager.findfont(fonts[0])).get_charmap())
    for font in font_manager.fontManager.ttflist if missing else ():
        if covered := missing & set(font_manager.get_font(font.fname).get_charmap()):
            fonts.append(font.name)
            missing -= covered
    return fonts


def on_white(svg: str) -> str:
    """Adds a white background, because viewers show files without one on any colour."""
    start = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:start]}<rect width="100%" height="100%" fill="white"/>{svg[start:]}'


def _rounded(match: re.Match[str]) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), match[2])
    return f'{match[1]}="{" ".join(text.split())}"'
