"""The terminal: the one place where text, also of untrusted files, reaches it."""

import io
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fact_jax.text import printable, say


class Console(rich.console.Console):
    """Rich's console, for text that may come from files.

    Strings are shown as they are, neither as markup nor as emoji codes, with control characters
    escaped. Give colours as `rich.text.Text`.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as rich's Text; printing and table cells come through here."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of a renderable; a Text with hidden characters loses the styles of its parts."""
        if isinstance(renderable, Text):
            renderable = _escaped(renderable)
        return super().render(renderable, options)


def _escaped(text: Text) -> Text:
    escaped = printable(text.plain)
    if escaped == text.plain:
        return text
    result = text.blank_copy(escaped)
    result.style = text.style
    return result


def prepare_terminal() -> None:
    """Makes stdout, stderr and warnings show any text, in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # ASCII cannot write our own ± and …
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are sentences for the user; others say where they come from."""
    if category is UserWarning:
        say(f"Warning: {message}", error=True)
    else:
        say(warnings.formatwarning(message, category, filename, lineno).rstrip(), error=True)
