"""A report's content, before it is HTML or Markdown.

Texts are plain, except for `code` between backticks and **strong** between double asterisks. Names
from results may hold anything; the writers escape them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from fact_jax.report.figures import svg_text
from fact_jax.report.table import Table


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
    """A notice: 'error' is red, 'warning' amber, 'info' neutral."""

    kind: Literal["error", "warning", "info"]
    text: str


class Fact(NamedTuple):
    """A part of an answer: the question, the answer in few words, and a sentence."""

    question: str
    answer: str
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer that a reader looks for first, as facts."""

    title: str
    facts: Sequence[Fact]


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
class Heat:
    """A confusion matrix: the share of each true class (row) that is predicted as another."""

    caption: str
    names: Sequence[str]
    shares: Sequence[Sequence[float]]  # [true, predicted], at most 1


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


@dataclasses.dataclass(frozen=True)
class Choice:
    """Blocks of several methods, one of which is shown: the first, until the reader chooses."""

    options: Sequence[tuple[str, Sequence[Block]]]


Block = (
    Heading
    | Text
    | Items
    | Notice
    | Answer
    | Table
    | Figure
    | Heat
    | Tiles
    | Code
    | Details
    | Choice
)


def inside(block: Block) -> list[Block]:
    """The blocks that a block holds."""
    match block:
        case Details(_, blocks):
            return [*blocks]
        case Choice(options):
            return [held for _, blocks in options for held in blocks]
    return []
