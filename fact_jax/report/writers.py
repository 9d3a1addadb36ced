"""A report as one HTML page that needs nothing else, and as Markdown with figures beside it.

The blocks of both are macros in `templates/`. Jinja2 escapes every text of the page; the one markup
that is added here is `code`, **strong** and the figures, which we drew.
"""

import base64
import html
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from fact_jax.report.blocks import Block, Heading
from fact_jax.report.figures import THEME
from fact_jax.report.folder import GENERATOR, file_name
from fact_jax.report.prose import environment
from fact_jax.report.table import Column
from fact_jax.text import printable, printable_line


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page: style, script and pictures are inside."""
    filters: dict[str, Any] = {
        "inline": _inline_html,
        "svg": _svg,
        "base64": lambda content: base64.b64encode(content).decode(),
        "identifier": lambda name: re.sub(r"[^a-zA-Z0-9_-]", "-", name),
        "spans": _spans,
        "firsts": _firsts,
    }
    menu = [block for block in blocks if isinstance(block, Heading) and block.anchor]
    template = environment(printable, autoescape=True, **filters).get_template("page.html")
    text = template.render(title=title, blocks=blocks, menu=menu, generator=Markup(GENERATOR))
    return str(text)


def markdown(blocks: Sequence[Block]) -> str:
    """The whole Markdown file; links are relative to it."""
    filters: dict[str, Any] = {
        "literal": _literal,
        "inline": _inline_markdown,
        "fenced": _fenced,
        "summary": lambda title: html.escape(printable_line(title.replace("`", ""))),
        "file": file_name,
        "markdown": markdown,
    }
    macros: Any = environment(str, **filters).get_template("blocks.md").module
    return "\n\n".join(macros.show(block).strip("\n") for block in blocks) + "\n"


def _inline_html(text: str) -> Markup:
    """The text with our own marks as tags."""
    tagged = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(text))))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", tagged))


def _spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Headings above several columns, and the number of columns below each."""
    return [(group, len(list(run))) for group, run in groupby(c.group for c in columns)]


def _firsts(columns: Sequence[Column]) -> list[bool]:
    """Whether each column begins another group than the column before it."""
    groups = [column.group for column in columns]
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


def _literal(text: str) -> str:
    """Any text as one line of Markdown, where it is no tag, link, table or emphasis."""
    text = html.escape(printable_line(text), quote=False)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)", r"\\\\", text)  # elsewhere it is literal
    return re.sub(r"([|*_`\[\]!#~])", r"\\\1", text)


def _inline_markdown(text: str) -> str:
    """Escapes a text, except for our `code` and **strong**."""
    parts = re.split(r"(`[^`\n]+`|\*\*)", text)
    ours = [len(part) > 1 and part.startswith(("`", "**")) for part in parts]
    return "".join(
        printable_line(part) if mark else _literal(part)
        for part, mark in zip(parts, ours, strict=True)
    )


def _fenced(text: str) -> str:
    """A block of code between fences longer than any in it."""
    text = printable(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
