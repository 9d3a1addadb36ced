"""Conclusions of a section: the answer in four facts, and sentences on its limits."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fact_jax.report.averages import Stat
from fact_jax.report.blocks import Answer, Block, Details, Fact, Heading, Items, Text
from fact_jax.report.prose import paragraphs
from fact_jax.report.sections import Section
from fact_jax.report.statistics import Comparison, compare, p_text
from fact_jax.report.study import Study, System
from fact_jax.report.table import MISSING, Cell, Column, Row, Table, name_cell, number_cell
from fact_jax.report.tables import COSTS, cost_cells, headline, published_rows, systems_of
from fact_jax.text import count_of

ALPHA = 0.05


class Tests(NamedTuple):
    """Pairs of systems by what the tests say.

    Attributes:
      seeds: all that were tested against the noise of training.
      noise: the pairs whose difference exceeds it.
      alike: the others.
      tasks: all that were tested from task to task.
      better: the pairs whose first system is reliably better there.
    """

    seeds: list[Comparison]
    noise: list[Comparison]
    alike: list[Comparison]
    tasks: list[Comparison]
    better: list[Comparison]


class Findings:
    """A section's systems in the order of their average, and all pairs compared."""

    def __init__(self, study: Study, section: Section):
        self.study, self.section = study, section
        self.systems = {s.label: s for s in systems_of(study.systems, section)}
        values = {k: v for k, s in self.systems.items() if (v := headline(s, section)) is not None}
        self.values = dict(sorted(values.items(), key=lambda item: -item[1].mean))
        self.best = next(iter(self.values), "")
        accuracies = {label: s.accuracies for label, s in self.systems.items()}
        pairs = compare(accuracies, list(section.groups.values()), section.units)
        self.pairs = sorted(pairs, key=lambda p: -p.difference)
        self.seeds = len({r.seed for r in study.results if r.task in section.tasks})

    @property
    def tests(self) -> Tests:
        """The tested pairs: those with the best method first, then by their difference."""
        ordered = sorted(self.pairs, key=lambda p: self.best not in (p.a, p.b))
        seeds = [p for p in ordered if p.p_seeds is not None]
        tasks = [p for p in ordered if p.p_tasks is not None]
        noise, better = (
            [p for p in seeds if _sure(p.p_seeds)],
            [p for p in tasks if _sure(p.p_tasks)],
        )
        return Tests(seeds, noise, [p for p in seeds if p not in noise], tasks, better)

    def answer(self) -> Answer:
        """The answer: the best method, its lead, its cost, and how sure that is."""
        section = self.section
        if not self.values:
            text = f"No method has finished all tasks, so there is no {section.headline}."
            return Answer(section.title, [Fact("Best method", "not known yet", text)])
        (best, value), *others = self.values.items()
        among = f", the highest of {len(self.values)} methods" if others else ""
        text = f"{section.headline} {value.text(section.digits)} %{among}."
        facts, pair = [Fact("Best method", best, text)], None
        second, behind = others[0] if others else ("", value)
        if others:
            pair = next(p for p in self.pairs if {p.a, p.b} == {best, second})
            low, high = pair.interval or (0, 0)
            sure = f"95 % interval {low:+.2f} to {high:+.2f}; " if pair.interval else ""
            text = f"{sure}{second} has {behind.text(section.digits)} %."
            facts.append(Fact(f"Ahead of {second} by", f"{pair.difference:.2f} points", text))
        numbers, stored = self._cost(best)
        text = f"{stored} bytes stored, the head included"
        text += f"; {second} takes {self._cost(second)[0]} numbers." if others else "."
        facts.append(Fact("Cost of a task", f"{numbers} numbers", text))
        return Answer(section.title, [*facts, self._certainty(pair)])

    def _cost(self, label: str) -> tuple[str, str]:
        """Numbers and bytes of a task."""
        cells = dict(zip(COSTS, cost_cells(self.systems[label], self.section.tasks), strict=True))
        return cells["numbers"].text or "unknown", cells["bytes"].text or "unknown"

    def _certainty(self, pair: Comparison | None) -> Fact:
        """The certainty that the best method is better than the second."""
        if self.seeds == 1:
            text = "How much is the noise of training cannot be said; run at least three seeds."
            return Fact("How sure", "one seed", text)
        if pair is None:
            text = "There is no other method to compare with."
            return Fact("How sure", count_of(self.seeds, "seed"), text)
        if pair.p_seeds is None:
            text = "A test needs two seeds of each method, the same on all tasks."
            return Fact("How sure", "not tested", text)
        what = f"{'more than' if _sure(pair.p_seeds) else 'may be'} the noise of training"
        other = "also better" if _sure(pair.p_tasks) else "not shown to be better"
        p = p_text(pair.p_seeds)
        p = f"p {p}" if p.startswith("<") else f"p = {p}"
        return Fact("How sure", what, f"{p} over {pair.seeds} seeds; {other} from task to task.")

    def conclusions(self) -> list[Block]:
        """Sentences on the section, and a table of all pairs."""
        table = _against_published(list(self.systems.values()), self.section, self.values)
        # An mAP is no share of the images.
        tested = [
            r
            for r in self.study.results
            if r.task in self.section.tasks and r.num_test and r.label_precision is None
        ]
        texts = paragraphs(
            "conclusions",
            found=self,
            section=self.section,
            study=self.study,
            published=table is not None,
            errors=[v.error for v in self.values.values() if v.error is not None],
            # of the drawing of the test images
            sampling=[
                math.sqrt(abs(r.accuracy * (100 - r.accuracy)) / (r.num_test or 1)) for r in tested
            ],
        )
        blocks: list[Block] = [Heading(self.section.title, level=3), Items(texts)]
        blocks += [table] if table is not None else []
        if self.pairs:
            title = f"All pairs ({len(self.pairs)}), with intervals and p-values"
            how = map(Text, paragraphs("pairs"))
            blocks.append(Details(title, [*how, _pair_table(self.pairs)]))
        return blocks


def _sure(p_value: float | None) -> bool:
    return p_value is not None and p_value < ALPHA


def _against_published(
    systems: Sequence[System], section: Section, values: Mapping[str, Stat]
) -> Table | None:
    """Our group means beside the published ones; None where there are none."""
    rows = []
    for system, row in published_rows(systems) if section.whole else ():
        ours, theirs = values.get(system.label), row.values.get("group mean")
        if ours is not None and theirs is not None:
            cells = [name_cell(system.label, system.style.color), number_cell(ours.mean, ".2f")]
            cells += [name_cell(row.title), number_cell(theirs, ".2f")]
            rows.append(Row([*cells, number_cell(ours.mean - theirs, "+.2f")]))
    columns = [Column("method", numeric=False), Column("ours"), Column("row", numeric=False)]
    columns += [Column("its group mean"), Column("ours less it")]
    return Table("Group mean on VTAB-1K, ours against published.", columns, rows) if rows else None


def _pair_table(pairs: Sequence[Comparison]) -> Table:
    columns = [Column("better", numeric=False), Column("than", numeric=False)]
    titles = ("difference", "95 % interval", "tasks", "better on", "seeds", "p, seeds", "p, tasks")
    columns += map(Column, titles)
    rows = []
    for p in pairs:
        low, high = p.interval or (0, 0)
        interval = Cell(f"{low:+.2f} to {high:+.2f}", low) if p.interval else MISSING
        cells = [name_cell(p.a), name_cell(p.b), number_cell(p.difference, "+.2f"), interval]
        cells += [number_cell(n) for n in (p.tasks, p.wins, p.seeds)]
        rows.append(Row([*cells, _p_cell(p.p_seeds), _p_cell(p.p_tasks)]))
    return Table("All pairs, the larger differences first.", columns, rows)


def _p_cell(value: float | None) -> Cell:
    if value is None:
        return MISSING
    return Cell(p_text(value), value, bold=_sure(value))
