"""Where a method comes from and how faithful it is, as data, of which docs/methods.md is made."""

from collections.abc import Mapping
from typing import NamedTuple

FIDELITY = {
    "code": "the authors' or peft's code was read, and the tests compare results with it or with "
    "a copy of its formula",
    "formula": "the paper's formula and numbers, since no code was at hand; initial values that "
    "it does not give are ours",
    "abstract": "the formula is read from the paper's abstract alone",
    "ours": "a variant of this library",
}


class About(NamedTuple):
    """The entries of a method in docs/methods.md's table of sources.

    Attributes:
      source: the publication.
      code: the repository and file that were read; empty for none.
      fidelity: a name of `FIDELITY`.
      deviations: what is known to differ from the source, a sentence each.
    """

    source: str
    code: str
    fidelity: str
    deviations: tuple[str, ...] = ()


def table(methods: Mapping[str, type]) -> str:
    """The sources of methods in Markdown: a row for each, and the deviations as notes below."""
    abouts: dict[str, About] = {name: kind.about for name, kind in methods.items()}  # type: ignore[attr-defined]
    sentences = (text for about in abouts.values() for text in about.deviations)
    notes = {text: i for i, text in enumerate(dict.fromkeys(sentences), 1)}
    lines = ["| method | source | code that was read | fidelity | deviations |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, about in abouts.items():
        marks = ", ".join(str(notes[text]) for text in about.deviations) or "none known"
        code = about.code or "none"
        lines.append(f"| `{name}` | {about.source} | {code} | {about.fidelity} | {marks} |")
    texts = [f"{i}. {text}" for text, i in notes.items()]
    return "\n".join([*lines, "", *texts])
