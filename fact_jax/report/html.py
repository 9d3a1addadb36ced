"""A report as one HTML page that needs nothing else: style, script and pictures are inside.

The page is `templates/page.html`, its blocks `templates/blocks.html`. Jinja2 escapes every text;
this module adds no markup but `code`, **strong** and the figures, which we drew.
"""

import base64
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fact_jax.report.blocks import Block, Heading
from fact_jax.report.figures import THEME
from fact_jax.report.folder import GENERATOR
from fact_jax.report.table import Column
from fact_jax.text import printable


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page."""
    menu = [block for block in blocks if isinstance(block, Heading) and block.anchor]
    template = _environment().get_template("page.html")
    generator = Markup(GENERATOR)
    return str(template.render(title=title, blocks=blocks, menu=menu, generator=generator))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fact_jax.report"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "inline": _inline,
        "kind": lambda block: type(block).__name__,
        "svg": _svg,
        "base64": lambda content: base64.b64encode(content).decode(),
        "identifier": lambda name: re.sub(r"[^a-zA-Z0-9_-]", "-", name),
        "spans": _spans,
        "firsts": _firsts,
    }
    return environment


def _inline(text: str) -> Markup:
    """The text with our own marks as tags."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(text))))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html))


def _spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Headings above several columns, and the number of columns below each."""
    return [(group, len(list(run))) for group, run in groupby(c.group for c in columns)]


def _firsts(columns: Sequence[Column]) -> list[bool]:
    """Whether each column begins another group than the column before it."""
    groups: list[Any] = [column.group for column in columns]
    return [before != group for before, group in zip(groups[:1] + groups, groups, strict=False)]


def _svg(svg: str, alt: str, again: bool = False) -> Markup:
    """An SVG of `svg_text` as an element of the page, in the colours of its theme. With `again` it
    repeats another figure, and `alt` is its title instead of its label."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # figure_1 and so on, the same in every figure
    text = re.sub(r"<g>\s*</g>\s*", "", text)
    text = re.sub(r">\s+<", "><", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    # The font of the page, and a size that follows the width of the page.
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    head = re.search(r'viewBox="[\d. ]+"', text)
    assert head is not None
    words = escape(printable(alt))
    label, title = ("", f"<title>{words}</title>") if again else (f' aria-label="{words}"', "")
    opening = f'<svg role="img"{label} {head[0]}>{title}'
    return Markup(opening + text[text.index(">") + 1 :].strip())
