"""Tables in the terminal."""

from typing import Any

import jax
import numpy as np
import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement

from fact_jax.report.table import Table
from fact_jax.text import printable


def rich_table(table: Table, title: str) -> rich.table.Table:
    """The table for rich, with lines between its groups of rows."""
    made = rich.table.Table(title=title, title_justify="left")
    for column in table.columns:
        made.add_column(column.name, justify="right" if column.numeric else "left")
    group = table.rows[0].group if table.rows else ""
    for row in table.rows:
        if row.group != group:
            made.add_section()
        group = row.group
        texts = (f"{cell.text or '-'} {cell.note}".rstrip() for cell in row.cells)
        made.add_row(*texts, style="dim" if row.published else None)
    made.caption = " ".join(table.notes) or None
    return made


def print_table(console: Console, table: rich.table.Table) -> None:
    """Prints every cell and word in full. On a narrow terminal headers wrap, and lines may be wider
    than the terminal. (Rich cuts names and numbers, also in files and pipes.)"""

    def width(text: Any) -> int:
        return cell_len(printable(str(text)))

    for column in table.columns:
        cells = [*column.cells, *f"{column.header} {column.footer}".split()]
        column.min_width = max(map(width, cells), default=0)
        column.no_wrap = column.min_width >= width(column.header)
    options = console.options.update(width=10_000)
    least = Measurement.get(console, options, table).minimum
    table.width = least if least > console.width else None
    console.print(table, crop=False)


def parameter_table(factors: Any) -> rich.table.Table:
    """Name, shape and size of every factor (arrays or shape structs), and their total."""
    numbers = rich.table.Column("numbers", justify="right")
    table = rich.table.Table("factor", "shape", numbers, show_footer=True)
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(factors):
        size = int(np.prod(leaf.shape))
        total += size
        name = "/".join(str(k.key) for k in keys)
        table.add_row(name, " x ".join(map(str, leaf.shape)), f"{size:,}")
    table.columns[0].footer, table.columns[2].footer = "trained in all", f"{total:,}"
    return table
