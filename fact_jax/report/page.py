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
    Cell,
    Code,
    Column,
    Details,
    Figure,
    Heading,
    Items,
    Row,
    Table,
    Text,
    Tiles,
)
from fact_jax.report.charts import accuracy_against_rank, accuracy_against_size, bars
from fact_jax.report.classes import task_details
from fact_jax.report.conclusions import conclusions, sources
from fact_jax.report.fewshot import few_shot_curves, few_shot_figure, few_shot_rows, remarks
from fact_jax.report.figures import figure_bytes, on_white
from fact_jax.report.folder import file_name, replace_report
from fact_jax.report.html import page
from fact_jax.report.markdown import markdown
from fact_jax.report.panels import learning_curves, selection_curves
from fact_jax.report.records import Result, csv_text
from fact_jax.report.sections import (
    COST_COLUMNS,
    cost_cells,
    few_shot_section,
    published_rows,
    section_table,
    sections,
    seeds_said,
    stat_cell,
)
from fact_jax.report.statistics import Stat, stat
from fact_jax.report.study import Study, read_study
from fact_jax.sweep.store import absolute


def write_report(
    workdirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> epath.Path:
    """Writes index.html, report.md, results.csv and the figures (PNG and SVG) into `out`, by
    default the first work directory's `report`; returns that folder. Needs matplotlib and scipy.

    Unsound files of results are left out with a warning. Raises UserError if there are no results,
    or if the report cannot be written; an older report then stays as it was.
    """
    study = read_study(*workdirs)
    folder = absolute(out) if out else absolute(workdirs[0]) / "report"
    blocks = report_blocks(study)
    title = blocks[0].text if isinstance(blocks[0], Heading) else "Report"
    for text in study.refused:
        warnings.warn(text, stacklevel=2)
    files = {
        "results.csv": csv_text(list(study.results)).encode(errors="backslashreplace"),
        "report.md": markdown(blocks).encode(),
        "index.html": page(title, blocks).encode(),
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
        match block:
            case Details(_, inside):
                yield from _pictures(inside)
            case Figure(name, figure):
                yield file_name(name, "svg"), on_white(block.svg).encode()
                figure.set_layout_engine("none")  # it is laid out
                yield file_name(name, "png"), figure_bytes(figure, "png")
            case Tiles(name, jpeg):
                yield file_name(name, "jpg"), jpeg


def report_blocks(study: Study) -> list[Block]:
    """The blocks of the report, in the order of a reader's questions."""
    blocks: list[Block] = [Heading(_title(study), level=1), *provenance.notices(study)]
    blocks += provenance.opening(study)
    parts = sections(study)
    if parts or study.few_shot:
        blocks.append(Heading("Results", "results"))
    for part in parts:
        blocks.append(section_table(study, part))
        published = published_rows(study) if part.name == "vtab" else []
        if published:
            sentences = Items(sources(published))
            blocks.append(Details("Where the published rows come from", [sentences]))
    if study.few_shot:
        blocks += _few_shot(study)
    few_shot = few_shot_section(study)
    concluded = [*parts, *([few_shot] if few_shot else [])]
    if concluded:
        blocks.append(Heading("What can and cannot be concluded", "conclusions"))
    for part in concluded:
        blocks += conclusions(study, part)
    figures = [f for part in parts for f in (accuracy_against_size(study, part), bars(study, part))]
    figures.append(accuracy_against_rank(study))
    drawn = [f for f in figures if f is not None]
    if drawn:
        blocks += [Heading("Figures", "figures"), *drawn]
    curves: list[Block] = []
    for part in concluded:
        curves += learning_curves(study, part.name, part.tasks)
        curves += selection_curves(study, part.name, part.tasks)
    if curves:
        blocks += [Heading("Training and selection", "training"), *curves]
    details = [d for task in study.tasks if (d := task_details(study, task.name))]
    details += _architectures(study)
    if details:
        blocks += [Heading("Task by task", "tasks"), *details]
    if study.failures:
        blocks += [Heading("Failures", "failures"), *provenance.failures(study)]
    if study.results:
        blocks += [Heading("How the numbers are made", "provenance")]
        blocks += [provenance.methods_of_counting(study), *provenance.tables(study)]
    return blocks


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


def _few_shot(study: Study) -> list[Block]:
    """Table and figure of the few-shot tasks, by data set and system."""
    results: list[Result] = [
        {**r, "method": s.label}
        for s in study.systems
        for r in s.results
        if any(r["task"] == t.name for t in study.few_shot)
    ]
    curves = few_shot_curves(results)
    shots = sorted({k for rows in curves.values() for row in rows.values() for k in row})
    systems = {s.label: s for s in study.systems}
    rows, stats = [], list[Stat]()
    for dataset, method, values, published in few_shot_rows(curves):
        cells = []
        for k in shots:
            value = stat([*values[k].values()]) if values.get(k) else None
            stats += [] if value is None or published else [value]
            cells.append(stat_cell(value))
        name = f"published {method}" if published else method
        colour = "" if published else systems[method].style.color
        cost = [Cell("–")] * len(COST_COLUMNS)
        if not published:
            tasks = [t.name for t in study.few_shot if dataset in (t.dataset, "mean")]
            cost = cost_cells(systems[method], tasks)
        names = [Cell(name, name, colour=colour), Cell(dataset, dataset)]
        rows.append(Row([*names, cost[0], *cells, *cost[1:]], published))
    columns = [Column("method", numeric=False), Column("data", numeric=False), COST_COLUMNS[0]]
    columns += [Column(str(k), "Training images a class", hint=f"{k} shots") for k in shots]
    columns += COST_COLUMNS[1:]
    caption = f"Few-shot: top-1 accuracy on test, %. {seeds_said(stats)}."
    blocks: list[Block] = [Table(caption, columns, rows)]
    if words := remarks(results, curves):
        blocks.append(Text(" ".join(words)))
    figure = few_shot_figure(results, {label: s.style for label, s in systems.items()})
    alt = "Accuracy against training images a class, a panel a data set; "
    alt += "the numbers are in the table."
    caption = "Accuracy on test against training images a class; dashed and hollow: published."
    blocks.append(Figure("fewshot", figure, alt, caption))
    return blocks


def _architectures(study: Study) -> list[Details]:
    """Architectures that searches found: the first as a picture, all as text."""
    results = [r for s in study.systems for r in s.results if r.get("search")]
    if not results:
        return []
    first = results[0]
    alt = f"Widths by block that the search of {first['cell']} found."
    caption = f"Found by `{first['cell']}`; the others are below."
    name, figure = f"architecture-{first['task']}", architecture_figure(first["search"])
    texts = "\n\n".join(f"{r['cell']}\n{architecture_text(r['search'])}" for r in results)
    blocks: list[Block] = [Figure(name, figure, alt, caption), Code(texts)]
    return [Details(f"Found architectures ({len(results)})", blocks)]
