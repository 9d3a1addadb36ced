"""The whole report of one or several sweeps."""

import os
import warnings
from collections.abc import Iterator, Sequence

from etils import epath

from fact_jax.errors import UserError
from fact_jax.report import provenance
from fact_jax.report.architecture import architecture_figure, architecture_text
from fact_jax.report.blocks import (
    Block,
    Code,
    Details,
    Figure,
    Heading,
    Items,
    Tiles,
    inside,
)
from fact_jax.report.changes import change_figures
from fact_jax.report.charts import accuracy_against_rank, accuracy_against_size, bars
from fact_jax.report.classes import details
from fact_jax.report.conclusions import Findings
from fact_jax.report.curves import learning_curves, selection_curves
from fact_jax.report.fewshot import few_shot_figure, few_shot_table
from fact_jax.report.figures import figure_bytes, on_white
from fact_jax.report.folder import file_name, replace_report
from fact_jax.report.records import csv_text
from fact_jax.report.sections import Section, few_shot_section, measure_of, sections
from fact_jax.report.study import Study, read_study
from fact_jax.report.tables import COSTS, published_rows, result_table, systems_of
from fact_jax.report.writers import markdown, page
from fact_jax.sweep.store import absolute


def write_report(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> epath.Path:
    """Writes index.html, report.md, results.csv and the figures (PNG and SVG) into `out`, by
    default the first work directory's `report`; returns that folder. Needs matplotlib, scipy and
    Jinja2.

    Unsound files of results are left out with a warning. Raises UserError if there are no results,
    or if the report cannot be written; an older report then stays as it was.
    """
    study = read_study(*workdirs)
    folder = absolute(out) if out else absolute(workdirs[0]) / "report"
    blocks = report_blocks(study)
    for text in study.refused:
        warnings.warn(text, stacklevel=2)
    files = {
        "results.csv": csv_text(list(study.results)).encode(errors="backslashreplace"),
        "report.md": markdown(blocks).encode(),
        "index.html": page(_title(study), blocks).encode(),
        **dict(_pictures(blocks)),
    }
    try:
        replace_report(folder, files)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {folder} ({error}). Give another folder with --out."
        ) from error
    return folder


def _pictures(blocks: Sequence[Block]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of all figures and pictures."""
    for block in blocks:
        yield from _pictures(inside(block))
        match block:
            case Figure(name, figure):
                yield file_name(name, "svg"), on_white(block.svg).encode()
                figure.set_layout_engine("none")  # it is laid out
                yield file_name(name, "png"), figure_bytes(figure, "png")
            case Tiles(name, jpeg):
                yield file_name(name, "jpg"), jpeg


def report_blocks(study: Study) -> list[Block]:
    """The blocks of the report, in the order of a reader's questions: what is the answer, what are
    the numbers, what follows from them, why, what went wrong, and where do they come from."""
    parts, few_shot = sections(study.tasks), few_shot_section(study.tasks)
    every = [*parts, *([few_shot] if few_shot else [])]
    findings = [Findings(study, part) for part in every]
    notices = provenance.notices(study)
    errors = [notice for notice in notices if notice.kind == "error"]
    blocks: list[Block] = [Heading(_title(study), level=1), *errors]
    blocks += _part("The answer", "answer", [found.answer() for found in findings])
    blocks += [provenance.opening(study), *(n for n in notices if n not in errors)]
    tables = [block for part in parts for block in _tables(study, part)]
    blocks += _part("Results", "results", [*tables, *(_few_shot(study) if few_shot else ())])
    blocks += _part("Figures", "figures", _figures(study, parts))
    concluded = [block for found in findings for block in found.conclusions()]
    blocks += _part("What can and cannot be concluded", "conclusions", concluded)
    curves: list[Block] = []
    for part in every:
        curves += learning_curves(study.systems, part)
        curves += selection_curves(study.systems, part)
    blocks += _part("Training and selection", "training", curves)
    blocks += _part("Task by task", "tasks", [*details(study), *_architectures(study)])
    blocks += _part("Failures", "failures", provenance.failures(study))
    return blocks + _part("How the numbers are made", "provenance", provenance.origin(study))


def _part(title: str, anchor: str, blocks: Sequence[Block]) -> list[Block]:
    """A part of the page; nothing where it has no blocks."""
    return [Heading(title, anchor), *blocks] if blocks else []


def _title(study: Study) -> str:
    tasks = {"VTAB-1K": study.vtab, "few-shot classification": study.few_shot}
    names = [title for title, several in tasks.items() if several]
    names += ["the offline suite"] if study.offline else []
    names += [", ".join(t.name for t in study.own)] if study.own else []
    methods = list(dict.fromkeys(s.method for s in study.systems))
    if len(methods) == len(study.systems):
        methods = [s.label for s in study.systems]
    what = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
    return f"{what} on {' and '.join(names)}" if names else "A sweep without results"


def _tables(study: Study, section: Section) -> Iterator[Block]:
    """Averages and costs, accuracies by task, and the sources of the published rows."""
    systems = systems_of(study.systems, section)
    table = result_table(systems, section)
    numbers, *costs = COSTS
    if section.averages:
        yield table.select(["method", numbers, *section.averages, *costs])
        caption = f"{section.title}, task by task: {section.full_measure} on test, %."
        yield table.select(["method", *section.tasks], caption)
    else:
        yield table
    if section.name == "vtab" and (rows := published_rows(systems)):
        sentences = Items([f"**{row.title}**: {row.source}" for _, row in rows])
        yield Details("Where the published rows come from", [sentences])


def _few_shot(study: Study) -> list[Block]:
    """Table and figure of the few-shot tasks, by data set and system."""
    drawing = few_shot_figure(study.systems)
    alt = "Accuracy against training images a class, a panel a data set; "
    alt += "the numbers are in the table."
    caption = (
        "Accuracy on test against training images a class: the further left a line is high, the "
        "fewer images its method needs."
    )
    if any(name.startswith("published") for name in drawing.entries):
        caption += " Dashed and hollow: published."
    figure = Figure("fewshot", drawing.wide(), alt, caption, drawing.narrow())
    return [few_shot_table(study.systems), figure]


def _figures(study: Study, parts: Sequence[Section]) -> list[Block]:
    drawn: list[Figure | None] = []
    for part in parts:
        drawn += [accuracy_against_size(study.systems, part), bars(study.systems, part)]
        drawn += change_figures(study.systems, part)
    drawn.append(accuracy_against_rank(study.systems, measure_of(study.tasks)))
    return [figure for figure in drawn if figure is not None]


def _architectures(study: Study) -> list[Details]:
    """Architectures that searches found: the first as a picture, all as text."""
    found = [(r, r.search) for s in study.systems for r in s.results if r.search]
    if not found:
        return []
    first, search = found[0]
    alt = f"Widths by block that the search of {first.cell} found."
    caption = f"Found by `{first.cell}`: tall bars are blocks where much is adapted."
    name, figure = f"architecture-{first.task}", architecture_figure(search)
    texts = "\n\n".join(f"{r.cell}\n{architecture_text(s)}" for r, s in found)
    blocks: list[Block] = [Figure(name, figure, alt, caption), Code(texts)]
    return [Details(f"Found architectures ({len(found)})", blocks)]
