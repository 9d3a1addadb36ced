"""A report's content, before it is HTML or Markdown.

Texts are plain, but `code` between backticks and **strong** between double asterisks; names from
results may hold anything, and are escaped by the writers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

from fact_jax.report.figures import svg_text


@dataclasses.dataclass(frozen=True)
class Heading:
    """`anchor` is its address in the page; '' for headings that are not in the menu."""

    text: str
    anchor: str = ""
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Notice:
    """A notice above the rest: 'error' is red, 'warning' amber, 'info' neutral."""

    kind: Literal["error", "warning", "info"]
    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """`value` is what a column is sorted by (None: always last), `note` a smaller second line."""

    text: str
    value: float | str | None = None
    note: str = ""
    bold: bool = False
    hint: str = ""
    colour: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """`group` is the heading above several columns, `hint` the title's long form; a `strong` one is
    set off, as means are."""

    title: str
    group: str = ""
    numeric: bool = True
    hint: str = ""
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    cells: Sequence[Cell]
    published: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """The first column stays in sight while the others are scrolled."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    sortable: bool = True


@dataclasses.dataclass(frozen=True)
class Figure:
    """A matplotlib figure, written as NAME.png and NAME.svg; `alt` says what it shows. Narrow
    windows show `narrow` in its place, where there is one."""

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
    """A row of square pictures in one JPEG, each with what it is and whether it was recognised."""

    name: str
    jpeg: bytes
    entries: Sequence[tuple[str, str, bool]]  # true class, predicted class, right


@dataclasses.dataclass(frozen=True)
class Code:
    text: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Closed until it is asked for."""

    title: str
    blocks: Sequence[Block]


Block = Heading | Text | Items | Notice | Table | Figure | Tiles | Code | Details
