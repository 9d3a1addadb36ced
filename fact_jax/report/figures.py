"""The look that all figures share, and how they become files or part of a page."""

import io
import re
from typing import Any

from etils import epath

from fact_jax.report.escape import escape_html
from fact_jax.report.palette import GRID, INK, PAPER, SOFT
from fact_jax.text import printable_line

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and the page's font
    "path.simplify": True,
    "path.simplify_threshold": 1.0,
}
# Colours of figures that become variables of the page's theme.
_THEME = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--panel)"}


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


def legend(figure: Any, handles: list[Any], columns: int) -> None:
    """Puts a legend above the panels, where it can hide no data."""
    columns = max(1, min(columns, len(handles)))
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 2.4}
    look |= {"columnspacing": 1.4, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, **look)


def save_figure(figure: Any, path: epath.Path) -> None:
    """Writes a matplotlib figure in the format of its file's suffix, also to a bucket."""
    suffix = path.suffix.removeprefix(".")
    if suffix == "svg":
        path.write_text(on_white(svg_text(figure, path.stem)))
        return
    path.write_bytes(figure_bytes(figure, suffix))


def figure_bytes(figure: Any, suffix: str) -> bytes:
    """A matplotlib figure on white, in the format of the suffix."""
    content = io.BytesIO()
    figure.savefig(content, format=suffix, dpi=150, facecolor="white")
    return content.getvalue()


def figure_text(text: str, longest: int = 60) -> str:
    """A name for a figure, as one short line. Matplotlib would read `$` as mathematics and hide a
    label that begins with `_`; both are escaped."""
    text = printable_line(text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", r"\$")


def svg_text(figure: Any, name: str) -> str:
    """The figure as SVG without a background, the same at every call, its paths rounded to a tenth
    of a point; ids depend on the name, so that several figures can stand in one page."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(content, format="svg", facecolor="none", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", content.getvalue(), flags=re.DOTALL)
    return re.sub(r'(?<= )(d|x|y|x1|x2|y1|y2|points)="([^"]*)"', _rounded, text)


def on_white(svg: str) -> str:
    """Adds a white background, because viewers show files without one on any colour."""
    start = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:start]}<rect width="100%" height="100%" fill="white"/>{svg[start:]}'


def _rounded(match: re.Match) -> str:
    text = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), match[2])
    return f'{match[1]}="{" ".join(text.split())}"'


def inline_svg(svg: str, alt: str, again: bool = False) -> str:
    """An SVG of `svg_text` as an element of an HTML page, in the colours of its theme. With
    `again` it repeats another figure, and `alt` is its title instead of its label."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # figure_1 and so on, the same in every figure
    text = re.sub(r"<g>\s*</g>\s*", "", text)
    text = re.sub(r">\s+<", "><", text)
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    # The font of the page, and a size that follows the width of the page.
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    head = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert head is not None
    words = escape_html(alt)
    label, title = ("", f"<title>{words}</title>") if again else (f' aria-label="{words}"', "")
    opening = (
        f'<svg role="img"{label} viewBox="0 0 {head[1]} {head[2]}" '
        f'style="width:{float(head[1]) * 4 / 3:.0f}px">{title}'
    )
    return opening + text[text.index(">") + 1 :].strip()
