"""A report's content, before it is HTML or Markdown.

Texts are plain, except for `code` between backticks and **strong** between double asterisks. Names
from results may hold anything; the writers escape them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

from fact_jax.report.figures import svg_text


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; `anchor` is its address in the page, or '' if it is not in the menu."""

    text: str
    anchor: str = ""
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Notice:
    """A notice above the rest: 'error' is red, 'warning' amber, 'info' neutral."""

    kind: Literal["error", "warning", "info"]
    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell; its column is sorted by `value` (None: always last), `note` is a second line."""

    text: str
    value: float | str | None = None
    note: str = ""
    bold: bool = False
    hint: str = ""
    colour: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column; `group` is the heading above several columns and `hint` the title's long form.
    Columns of means are `strong`, which sets them off."""

    title: str
    group: str = ""
    numeric: bool = True
    hint: str = ""
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table; rows of published numbers look different."""

    cells: Sequence[Cell]
    published: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; its first column stays in sight while the others are scrolled."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = True


@dataclasses.dataclass(frozen=True)
class Figure:
    """A matplotlib figure, written as NAME.png and NAME.svg; `alt` says what it shows. Narrow
    windows show `narrow` instead, if there is one."""

    name: str
    figure: Any
    alt: str
    caption: str
    narrow: Any = None

    @functools.cached_property
    def svg(self) -> str:
        """The figure without a background; drawn once, since that takes half a second."""
        return svg_text(self.figure, self.name)

    @functools.cached_property
    def narrow_svg(self) -> str:
        """The figure for narrow windows; '' where there is none."""
        return "" if self.narrow is None else svg_text(self.narrow, f"{self.name}-narrow")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A row of square pictures in one JPEG, with the true and the predicted class of each."""

    name: str
    jpeg: bytes
    entries: Sequence[tuple[str, str, bool]]  # true class, predicted class, right


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines of a command or a traceback."""

    text: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks below a title, closed until the reader opens them."""

    title: str
    blocks: Sequence[Block]


Block = Heading | Text | Items | Notice | Table | Figure | Tiles | Code | Details
