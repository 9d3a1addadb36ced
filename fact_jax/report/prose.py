"""The report's templates, and its sentences: `templates/*.txt`, a paragraph a line."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fact_jax.text import count_of, printable_line


def environment(
    shown: Callable[[str], str], autoescape: bool = False, **filters: Callable[..., Any]
) -> Environment:
    """Templates whose texts all go through `shown`; a macro is chosen by the `kind` of a block."""
    made = Environment(
        loader=PackageLoader("fact_jax.report"),
        autoescape=autoescape,
        finalize=lambda value: shown(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"kind": lambda block: type(block).__name__, **filters}
    return made


def paragraphs(name: str, **facts: Any) -> list[str]:
    """The paragraphs of templates/NAME.txt, filled with a study's facts.

    Texts from results stay on their line; the writers escape them.
    """
    template = environment(printable_line, count=count_of).get_template(f"{name}.txt")
    return [line for line in template.render(**facts).split("\n") if line.strip()]
