"""Any text as part of a page or of a Markdown file: one function for each."""

import html
import re

from fact_jax.text import printable, printable_line


def escape_html(text: str) -> str:
    """Any text as HTML, also inside of an attribute."""
    return html.escape(printable(text))


def escape_markdown(text: str) -> str:
    """Any text as one line of Markdown, where it is no tag, link, table or emphasis."""
    text = html.escape(printable_line(text), quote=False)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)", r"\\\\", text)  # elsewhere it is literal
    return re.sub(r"([|*_`\[\]!#~])", r"\\\1", text)
