"""The one type of table: what the terminal, Markdown and the page write."""

import dataclasses
from collections.abc import Sequence

from fact_jax.report.averages import Stat


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell; its column is sorted by `value` (None: always last), `note` stands after the text.

    A cell without a text is missing, and writers show a dash.
    """

    text: str = ""
    value: float | str | None = None
    note: str = ""
    bold: bool = False
    hint: str = ""
    colour: str = ""


MISSING = Cell()


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
      title: its header.
      group: the header above several columns.
      numeric: whether it is aligned right and sorted by size.
      hint: the title's long form.
      strong: whether it is set off, as means are.
      key: its name for `Table.select` and the terminal; by default the title.
    """

    title: str
    group: str = ""
    numeric: bool = True
    hint: str = ""
    strong: bool = False
    key: str = ""

    @property
    def name(self) -> str:
        """The key, or the title where there is none."""
        return self.key or self.title


@dataclasses.dataclass(frozen=True)
class Row:
    """A row; `published` rows are softer, and rows of one `group` stand together."""

    cells: Sequence[Cell]
    published: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; its first column names the rows. Writers show the `notes` below it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    sortable: bool = True

    def select(self, names: Sequence[str], caption: str = "") -> "Table":
        """The table of these columns, in this order."""
        at = {column.name: i for i, column in enumerate(self.columns)}
        places = [at[name] for name in names if name in at]
        return dataclasses.replace(
            self,
            caption=caption or self.caption,
            columns=[self.columns[i] for i in places],
            rows=[
                dataclasses.replace(row, cells=[row.cells[i] for i in places]) for row in self.rows
            ],
        )

    def transposed(self, name: str, groups: Sequence[str]) -> "Table":
        """The table with columns as rows; `name` heads the first column.

        Rows keep their column's group, if it is one of the `groups`.
        """
        heads = [row.cells[0] for row in self.rows]
        columns = [Column(name, numeric=False)]
        columns += [Column(f"{head.text} {head.note}".rstrip()) for head in heads]
        rows = [
            Row(
                [Cell(column.name, column.name), *(row.cells[i] for row in self.rows)],
                group=column.group if column.group in groups else "",
            )
            for i, column in enumerate(self.columns)
            if i
        ]
        return dataclasses.replace(self, columns=columns, rows=rows)


def stat_cell(value: Stat | None, digits: int = 1, bold: bool = False) -> Cell:
    """The cell of a mean and its standard error."""
    if value is None:
        return MISSING
    note = "" if value.error is None else f"± {value.error:.{digits}f}"
    return Cell(f"{value.mean:.{digits}f}", value.mean, note, bold)


def name_cell(name: str, colour: str = "") -> Cell:
    """The cell of a name, by which its column is sorted; a colour is shown before it."""
    return Cell(name, name, colour=colour)


def number_cell(value: float | None, form: str = ",.0f") -> Cell:
    """The cell of a number in this format; missing without one."""
    return MISSING if value is None else Cell(f"{value:{form}}", value)
