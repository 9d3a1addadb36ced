"""A report as Markdown for GitHub, with the figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

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

_KINDS = {"error": "CAUTION", "warning": "WARNING", "info": "NOTE"}


def markdown(blocks: Sequence[Block]) -> str:
    """The whole file; links are relative to it."""
    return "\n\n".join(map(_block, blocks)) + "\n"


def _inline(text: str) -> str:
    """Names with < or & must not become tags; what is between backticks is left as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(p if p.startswith("`") else escape(p, quote=False) for p in parts)


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
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}\n{text.rstrip()}\n{fence}"
        case Details(title, blocks):
            summary = escape(title.replace("`", ""))
            return f"<details><summary>{summary}</summary>\n\n{markdown(blocks)}\n</details>"
        case Figure(name, _, alt, caption):
            return f"![{_inline(alt)}]({name}.png)\n\n*{_inline(caption)}*"
        case Table():
            return _table(block)
        case Tiles(name, _, entries):
            words = "; ".join(t if right else f"{t} → {p}" for t, p, right in entries)
            return f"![From the left: {_inline(words)}]({name}.jpg)\n\n{_inline(words)}"


def _table(table: Table) -> str:
    lines = [
        "| " + " | ".join(_plain(c.title) for c in table.columns) + " |",
        "| " + " | ".join("---:" if c.numeric else "---" for c in table.columns) + " |",
        *("| " + " | ".join(map(_cell, row.cells)) + " |" for row in table.rows),
    ]
    return f"**{_inline(table.caption)}**\n\n" + "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    text = f"**{text}**" if cell.bold else text
    return f"{text} {_plain(cell.note)}" if cell.note else text


def _plain(text: str) -> str:
    text = escape(text, quote=False).replace("\n", " ")
    return re.sub(r"([|*_`\[\]])", r"\\\1", text)
