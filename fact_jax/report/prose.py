"""The report's sentences: `templates/*.txt`, a paragraph a line, filled with a study's facts."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fact_jax.text import printable_line


def paragraphs(name: str, **facts: Any) -> list[str]:
    """The paragraphs of templates/NAME.txt. Texts from results stay on their line; the writers
    escape them."""
    environment = Environment(
        loader=PackageLoader("fact_jax.report"),
        finalize=lambda value: printable_line(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count
    text = environment.get_template(f"{name}.txt").render(**facts)
    return [line for line in text.split("\n") if line.strip()]


def count(number: int, word: str) -> str:
    """The number with its word, in the plural where it is not one."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
