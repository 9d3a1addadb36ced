"""Text from files and users, made safe to show."""

import re
import sys
from collections.abc import Sequence
from typing import Any

# Control characters but newline; soft hyphen; characters without width and those that change the
# order of a line (bidirectional controls, line and paragraph separators, byte-order marks, tags);
# lone surrogates, as in names that are not UTF-8. ZWNJ and ZWJ stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""The text with invisible and reordering characters as escapes: `\x1b`, `\u202e`, `\udce9`.

    Newlines stay. Text from files cannot move the cursor, recolour or reorder a terminal
    afterwards, and every output encoding but ASCII's siblings can write it.
    """
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def printable_line(text: str) -> str:
    r"""Escapes newlines, too, besides what `printable` does: names stay on one line."""
    return printable(text).replace("\n", r"\n")


def csv_field(value: Any) -> Any:
    """A value of a CSV file that no spreadsheet takes for a formula.

    Text that begins with one of ``= + - @``, a tab or a carriage return gets an apostrophe before
    it; who reads the file with a program removes that one. Numbers stay as they are.
    """
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def first_ten(parts: Sequence[str]) -> str:
    """The parts on one line, separated by semicolons; how many more there are after ten.

    Each is cut after 500 characters, since a file may say names of any length.
    """
    more = f"; and {len(parts) - 10:,} more" if len(parts) > 10 else ""
    return "; ".join(printable_line(part[:500]) for part in parts[:10]) + more


def count_of(number: int, noun: str) -> str:
    """ "1 cell", "2 cells", "1,000 cells"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def say(text: str, error: bool = False) -> None:
    """Prints one message to stdout, or to stderr if it is an `error`, and flushes it."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)
