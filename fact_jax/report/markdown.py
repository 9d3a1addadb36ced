"""A report as Markdown for GitHub, with the figures as files beside it."""

import re
from collections.abc import Sequence

from fact_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Details,
    Figure,
    Heading,
    Items,
    Notice,
    Table,
    Text,
    Tiles,
)
from fact_jax.report.escape import escape_html, escape_markdown
from fact_jax.report.folder import file_name
from fact_jax.text import printable, printable_line

_KINDS = {"error": "CAUTION", "warning": "WARNING", "info": "NOTE"}


def markdown(blocks: Sequence[Block]) -> str:
    """The whole file; links are relative to it."""
    return "\n\n".join(map(_block, blocks)) + "\n"


def _inline(text: str) -> str:
    """Escapes a text, except for our `code` and **strong**."""
    parts = re.split(r"(`[^`\n]+`|\*\*)", text)
    ours = [len(part) > 1 and part.startswith(("`", "**")) for part in parts]
    return "".join(
        printable_line(part) if mark else escape_markdown(part)
        for part, mark in zip(parts, ours, strict=True)
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, _, level):
            return f"{'#' * level} {_inline(text)}"
        case Text(text):
            return _inline(text)
        case Items(texts):
            return "\n".join(f"- {_inline(t)}" for t in texts)
        case Notice(kind, text):
            return f"> [!{_KINDS[kind]}]\n> {_inline(text)}"
        case Code(text):
            text = printable(text)
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}\n{text.rstrip()}\n{fence}"
        case Details(title, blocks):
            summary = escape_html(title.replace("`", "")).replace("\n", " ")
            return f"<details><summary>{summary}</summary>\n\n{markdown(blocks)}\n</details>"
        case Figure(name, _, alt, caption):
            return f"![{_inline(alt)}]({file_name(name, 'png')})\n\n*{_inline(caption)}*"
        case Table():
            return _table(block)
        case Tiles(name, _, entries):
            words = "; ".join(t if right else f"{t} → {p}" for t, p, right in entries)
            words = escape_markdown(words)
            return f"![From the left: {words}]({file_name(name, 'jpg')})\n\n{words}"


def _table(table: Table) -> str:
    lines = [
        "| " + " | ".join(escape_markdown(c.title) for c in table.columns) + " |",
        "| " + " | ".join("---:" if c.numeric else "---" for c in table.columns) + " |",
        *("| " + " | ".join(map(_cell, row.cells)) + " |" for row in table.rows),
    ]
    return f"**{_inline(table.caption)}**\n\n" + "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.bold else text
    return f"{text} {escape_markdown(cell.note)}" if cell.note else text
