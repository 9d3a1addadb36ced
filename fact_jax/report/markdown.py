"""A report as Markdown for GitHub, with the figures as files beside it."""

import html
import re
from collections.abc import Sequence

from fact_jax.report.blocks import (
    Answer,
    Block,
    Choice,
    Code,
    Details,
    Figure,
    Heading,
    Heat,
    Items,
    Notice,
    Text,
    Tiles,
)
from fact_jax.report.folder import file_name
from fact_jax.report.table import Cell, Column, Row, Table
from fact_jax.text import printable, printable_line

_KINDS = {"error": "CAUTION", "warning": "WARNING", "info": "NOTE"}


def markdown(blocks: Sequence[Block]) -> str:
    """The whole file; links are relative to it."""
    return "\n\n".join(map(_block, blocks)) + "\n"


def _escape(text: str) -> str:
    """Any text as one line of Markdown, where it is no tag, link, table or emphasis."""
    text = html.escape(printable_line(text), quote=False)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)", r"\\\\", text)  # elsewhere it is literal
    return re.sub(r"([|*_`\[\]!#~])", r"\\\1", text)


def _inline(text: str) -> str:
    """Escapes a text, except for our `code` and **strong**."""
    parts = re.split(r"(`[^`\n]+`|\*\*)", text)
    ours = [len(part) > 1 and part.startswith(("`", "**")) for part in parts]
    return "".join(
        printable_line(part) if mark else _escape(part)
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
            summary = html.escape(printable_line(title.replace("`", "")))
            return f"<details><summary>{summary}</summary>\n\n{markdown(blocks)}\n</details>"
        case Choice(options):
            (name, shown), *others = options
            rest = [Details(f"{other}", blocks) for other, blocks in others]
            return markdown([Text(f"**{name}**"), *shown, *rest]).rstrip()
        case Answer(title, facts):
            lines = [f"- {q}: **{_inline(a)}** {_inline(text)}" for q, a, text in facts]
            return "\n".join([f"### {_inline(title)}\n", *lines])
        case Figure(name, _, alt, caption):
            return f"![{_inline(alt)}]({file_name(name, 'png')})\n\n*{_inline(caption)}*"
        case Table():
            return _table(block)
        case Heat(caption, names, shares):
            columns = [Column("true", numeric=False), *map(Column, names)]
            rows = [
                Row([Cell(name), *(Cell(f"{100 * s:.0f}" if s >= 0.002 else " ") for s in row)])
                for name, row in zip(names, shares, strict=True)
            ]
            return _table(Table(caption, columns, rows))
        case Tiles(name, _, entries):
            words = "; ".join(t if right else f"{t} → {p}" for t, p, right in entries)
            words = _escape(words)
            return f"![From the left: {words}]({file_name(name, 'jpg')})\n\n{words}"


def _table(table: Table) -> str:
    lines = [
        "| " + " | ".join(_escape(c.title) for c in table.columns) + " |",
        "| " + " | ".join("---:" if c.numeric else "---" for c in table.columns) + " |",
        *("| " + " | ".join(map(_cell, row.cells)) + " |" for row in table.rows),
    ]
    notes = "".join(f"\n\n{_inline(note)}" for note in table.notes)
    return f"**{_inline(table.caption)}**\n\n" + "\n".join(lines) + notes


def _cell(cell: Cell) -> str:
    text = _escape(cell.text or "–")
    text = f"**{text}**" if cell.bold else text
    return f"{text} {_escape(cell.note)}" if cell.note else text
