"""A report as one HTML page that needs nothing else: style, script and pictures are inside."""

import base64
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from fact_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Details,
    Figure,
    Heading,
    Items,
    Notice,
    Row,
    Table,
    Text,
    Tiles,
)
from fact_jax.report.escape import escape_html
from fact_jax.report.figures import inline_svg
from fact_jax.report.folder import GENERATOR

_TITLES = {"error": "Warning", "warning": "Note", "info": "Note"}


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page."""
    here = Path(__file__).parent
    menu = "".join(
        f'<a href="#{b.anchor}">{escape_html(b.anchor.capitalize())}</a>'
        for b in blocks
        if isinstance(b, Heading) and b.anchor
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; form-action 'none'; \
base-uri 'none'">
{GENERATOR}
<meta name="color-scheme" content="light dark">
<title>{escape_html(title)}</title>
<style>{(here / "page.css").read_text()}</style>
</head>
<body>
<nav aria-label="Parts">{menu}<button type="button" id="theme" hidden></button></nav>
<main>
{"".join(map(_html, blocks))}
</main>
<script>{(here / "page.js").read_text()}</script>
</body>
</html>
"""


def _inline(text: str) -> str:
    text = escape_html(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _html(block: Block) -> str:
    match block:
        case Heading(text, anchor, level):
            at = f' id="{escape_html(anchor)}"' if anchor else ""
            return f"<h{level}{at}>{_inline(text)}</h{level}>\n"
        case Text(text):
            return f"<p>{_inline(text)}</p>\n"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_inline(t)}</li>" for t in texts) + "</ul>\n"
        case Notice(kind, text):
            return f'<p class="notice {kind}"><b>{_TITLES[kind]}.</b> {_inline(text)}</p>\n'
        case Code(text):
            return f'<pre tabindex="0"><code>{escape_html(text)}</code></pre>\n'
        case Details(title, blocks):
            inside = "".join(map(_html, blocks))
            return f"<details><summary>{_inline(title)}</summary>\n{inside}</details>\n"
        case Figure(name, _, alt, caption):
            drawing = inline_svg(block.svg, alt)
            if block.narrow_svg:
                narrow = inline_svg(block.narrow_svg, alt, again=True)
                drawing = f'<div class="wide">{drawing}</div><div class="narrow">{narrow}</div>'
            return (
                f'<figure id="figure-{escape_html(name)}">{drawing}'
                f"<figcaption>{_inline(caption)}</figcaption></figure>\n"
            )
        case Table():
            return _table(block)
        case Tiles():
            return _tiles(block)


def _table(table: Table) -> str:
    groups = ""
    if any(c.group for c in table.columns):
        spans = [(group, len(list(run))) for group, run in groupby(c.group for c in table.columns)]
        cells = "".join(
            f'<th colspan="{n}" scope="colgroup" class="group">{escape_html(group)}</th>'
            if group
            else "<td></td>" * n  # only the first of them sticks
            for group, n in spans
        )
        groups = f"<tr>{cells}</tr>"
    heads = []
    last = table.columns[0].group
    for column in table.columns:
        kinds = ["n"] if column.numeric else []
        kinds += ["strong"] if column.strong else []
        kinds += ["first"] if column.group != last else []
        last = column.group
        title = escape_html(column.title)
        hint = f' title="{escape_html(column.hint)}"' if column.hint else ""
        if table.sortable:
            title = f'<button type="button">{title}</button>'
        heads.append(f'<th scope="col" class="{" ".join(kinds)}"{hint}>{title}</th>')
    rows = "\n".join(_row(row, table) for row in table.rows)
    kind = "sortable" if table.sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape_html(table.caption)}">'
        f'<table class="{kind}"><caption>{_inline(table.caption)}</caption>'
        f"<thead>{groups}<tr>{''.join(heads)}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _row(row: Row, table: Table) -> str:
    cells = []
    last = table.columns[0].group
    for i, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True)):
        kinds = ["n"] if column.numeric else []
        kinds += ["strong"] if column.strong else []
        kinds += ["first"] if column.group != last else []
        last = column.group
        kinds += ["named"] if cell.colour else []
        attributes = f' class="{" ".join(kinds)}"' if kinds else ""
        if cell.value is not None and str(cell.value) != cell.text:
            attributes += f' data-v="{escape_html(str(cell.value))}"'
        if cell.hint:
            attributes += f' title="{escape_html(cell.hint)}"'
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{attributes}>{_cell(cell)}</{tag}>")
    return f"<tr{' class=published' if row.published else ''}>{''.join(cells)}</tr>"


def _cell(cell: Cell) -> str:
    text = escape_html(cell.text)
    if cell.bold:
        text = f"<b>{text}</b>"
    if cell.colour:
        text = f'<i class="chip" style="background:{cell.colour}"></i>{text}'
    return text + (f"<small>{escape_html(cell.note)}</small>" if cell.note else "")


def _tiles(tiles: Tiles) -> str:
    """Tiles as HTML; the JPEG is in it once, as the background of all."""
    name, count = f"tiles-{re.sub(r'[^a-zA-Z0-9_-]', '-', tiles.name)}", len(tiles.entries)
    data = base64.b64encode(tiles.jpeg).decode()
    style = (
        f"<style>.{name} b{{background-image:url(data:image/jpeg;base64,{data});"
        f"background-size:{count * 100}% 100%}}</style>"
    )
    items = []
    for i, (true, predicted, right) in enumerate(tiles.entries):
        true, predicted = escape_html(true), escape_html(predicted)
        said = "right" if right else f"taken for {predicted}"
        words = true if right else f"{true} <span>→ {predicted}</span>"
        place = f"{100 * i / max(count - 1, 1):.4f}%"
        items.append(
            f'<li class="{"right" if right else "wrong"}"><b role="img" '
            f'aria-label="{true}, {said}" style="background-position:{place} 0">'
            f"</b>{words}</li>"
        )
    return f'{style}<ul class="tiles {name}">{"".join(items)}</ul>\n'
