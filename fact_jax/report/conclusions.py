"""Sentences on what a section's results show and what they do not."""

import math
from collections.abc import Sequence

from fact_jax.report.blocks import Block, Cell, Column, Details, Heading, Items, Row, Table, Text
from fact_jax.report.sections import Published, Section, headline, published_rows, systems_of
from fact_jax.report.statistics import MIN_TASKS, Comparison, Stat, compare
from fact_jax.report.study import Study

ALPHA = 0.05
_SHOWN = 6  # most pairs that a sentence names; the table has all


def conclusions(study: Study, section: Section) -> list[Block]:
    """Sentences on a section, and a table of all pairs."""
    values = {s.label: v for s in study.systems if (v := headline(s, section)) is not None}
    systems = {s.label: s.accuracies for s in systems_of(study, section)}
    pairs = compare(systems, list(section.groups.values()), section.units)
    texts = [*_ranking(values, section), _noise(study, section, values)]
    if len(systems) > 1:
        best = max(values, key=lambda name: values[name].mean, default="")
        texts += _over_seeds(pairs, best) + _over_tasks(pairs, section, best)
    table = None
    if section.name == "vtab":
        text, table = _against_published(study, section, values)
        texts.append(text)
    texts.append(_limits(study, section))
    blocks: list[Block] = [Heading(section.title, level=3), Items(texts)]
    blocks += [table] if table is not None else []
    if pairs:
        title = f"All pairs ({len(pairs)}), with intervals and p-values"
        blocks.append(Details(title, [Text(HOW), _pair_table(pairs)]))
    return blocks


HOW = (
    "Difference: of the averages over the tasks that both have. Interval: 95 %, of this pair "
    "alone. **p, seeds**: Welch's t-test on the averages over the tasks that each seed has for "
    "itself (does the difference exceed the noise of training, on these tasks?). **p, tasks**: "
    "Wilcoxon's signed-rank test, paired by task, on the means over seeds (would it hold on other"
    " tasks of the kind?). Both two-sided, both corrected by Holm over all pairs of this table. "
    "Pairs of task and seed are not tested as if they were independent: the seeds of a task are "
    "not new tasks."
)


def _ranking(values: dict[str, Stat], section: Section) -> list[str]:
    if not values:
        return [
            f"No method has finished all tasks, so there is no {section.headline} to rank them by."
        ]
    if len(values) == 1:
        ((name, value),) = values.items()
        return [f"**{name}** alone has all tasks: {section.headline} {value.text(2)} (in %)."]
    order = sorted(values, key=lambda name: -values[name].mean)
    shown = ", ".join(f"{name} {values[name].text(2)}" for name in order[:3])
    more = f", and {len(order) - 3} more below" if len(order) > 3 else ""
    return [f"By {section.headline} the order is **{order[0]}** first: {shown}{more} (in %)."]


def _noise(study: Study, section: Section, values: dict[str, Stat]) -> str:
    seeds = len({r["seed"] for r in study.results if r["task"] in section.tasks})
    what = "`±` is the standard error of the mean over seeds"
    if seeds == 1:
        return (
            "**One seed: no error bar.** How much of a difference is the noise of training cannot "
            'be said; run at least three, `--config.seeds="(0,1,2)"`.'
        )
    errors = [v.error for v in values.values() if v.error is not None]
    size = f" (here {min(errors):.2f} to {max(errors):.2f} points on the average)" if errors else ""
    return (
        f"{seeds} seeds; {what}{size}: how far training again would move the number. Of so few "
        f"seeds it is itself uncertain, and it leaves out the drawing of the test images"
        f"{_sampling(study, section)}."
    )


def _sampling(study: Study, section: Section) -> str:
    """A sentence on the sampling error of the test images: sqrt(p (1 - p) / n)."""
    errors = [
        math.sqrt(abs(r["accuracy"] * (100 - r["accuracy"])) / r["num_test"])
        for r in study.results
        if r["task"] in section.tasks and r.get("num_test")
    ]
    if not errors:
        return ""
    return f", alone good for {min(errors):.1f} to {max(errors):.1f} points on a single task"


def _over_seeds(pairs: Sequence[Comparison], best: str) -> list[str]:
    tested = [p for p in pairs if p.p_seeds is not None]
    if not tested:
        return ["No test between methods on these tasks can be made: it needs two seeds of each."]
    sure = [p for p in tested if p.p_seeds is not None and p.p_seeds < ALPHA]
    unsure = [p for p in tested if p not in sure]
    texts = []
    if sure:
        texts.append(
            f"**More than the noise of training, on these very tasks**: {_pairs(sure, best)} "
            f"(Welch's t-test over seeds, Holm over {len(tested)} pairs, 5 %)."
        )
    if unsure:
        texts.append(
            f"**Not told apart by these seeds**: {_pairs(unsure, best)}. That is no proof that "
            "they are equal: with so few seeds and so many pairs only large differences are found."
        )
    return texts


def _over_tasks(pairs: Sequence[Comparison], section: Section, best: str) -> list[str]:
    tested = [p for p in pairs if p.p_tasks is not None]
    if not tested:
        word, count = "data set" if section.name == "fewshot" else "task", len(section.units)
        return [
            f"Whether a difference would hold on other {word}s cannot be tested with {count} "
            f"{word}{'s' if count > 1 else ''}: Wilcoxon's signed-rank test needs at least "
            f"{MIN_TASKS}."
        ]
    sure = [p for p in tested if p.p_tasks is not None and p.p_tasks < ALPHA]
    method = f"Wilcoxon's signed-rank test over tasks, Holm over {len(tested)} pairs, 5 %"
    if not sure:
        return [f"**From task to task no method is reliably better than another** ({method})."]
    rest = len(tested) - len(sure)
    others = f" Of the other pairs ({rest}) this cannot be said." if rest else ""
    return [f"**Better from task to task**: {_pairs(sure, best, True)} ({method}).{others}"]


def _pairs(pairs: Sequence[Comparison], best: str, wins: bool = False) -> str:
    """The pairs as text, sorted: pairs with the best method first, then by their difference."""
    ordered = sorted(pairs, key=lambda p: (best not in (p.a, p.b), -p.difference))
    texts = [
        f"{p.a} over {p.b} " + (f"(on {p.wins} of {p.tasks})" if wins else f"by {p.difference:.2f}")
        for p in ordered[:_SHOWN]
    ]
    rest = len(pairs) - _SHOWN
    more = f", and {rest} pair{'s' if rest > 1 else ''} more" if rest > 0 else ""
    return ", ".join(texts) + more


def _against_published(
    study: Study, section: Section, values: dict[str, Stat]
) -> tuple[str, Table | None]:
    if not section.whole:
        return (
            "Published averages are of all 19 tasks; with fewer here they are not compared.",
            None,
        )
    rows = []
    for row in published_rows(study):
        name = row.system.label
        ours, theirs = values.get(name), row.row.get("group mean")
        if ours is not None and theirs is not None:
            less = ours.mean - theirs
            cells = [Cell(name, name, colour=row.system.style.color)]
            cells += [Cell(f"{ours.mean:.2f}", ours.mean), Cell(row.title, row.title)]
            cells += [Cell(f"{theirs:.2f}", theirs), Cell(f"{less:+.2f}", less)]
            rows.append(Row(cells))
    if not rows:
        return "No published row has a group mean to compare with.", None
    columns = [Column("method", numeric=False), Column("ours"), Column("row", numeric=False)]
    columns += [Column("its group mean"), Column("ours less it")]
    text = (
        "**Against the published rows** (table below) no test is made: they have no error bars. "
        "Those marked “best on test” took the best of ten test evaluations, worth about half a "
        "point, and were made from JPEG copies of the images; compare them with protocol `paper`, "
        "and the re-run with protocol `val`."
    )
    return text, Table("Group mean on VTAB-1K, ours against published.", columns, rows)


def _limits(study: Study, section: Section) -> str:
    parts = [
        "other backbones, other pre-training, or more training data",
        "methods beyond the settings that were tried: the column “grid” says among how many each "
        "could choose, and a method with a larger grid had more chances",
    ]
    if "paper" in study.protocols:
        parts.insert(
            0,
            "the accuracy to expect on new data (protocol `paper` chose the epoch on the test set, "
            "which makes every number of it too high)",
        )
    if section.name == "offline":
        parts.insert(0, "VTAB-1K: the offline suite is small and easy, and not a sample of it")
    return f"**Nothing is said here about** {'; '.join(parts)}."


def _pair_table(pairs: Sequence[Comparison]) -> Table:
    columns = [Column("better", numeric=False), Column("than", numeric=False)]
    titles = ("difference", "95 % interval", "tasks", "better on", "seeds", "p, seeds", "p, tasks")
    columns += map(Column, titles)
    rows = []
    for p in sorted(pairs, key=lambda p: -p.difference):
        interval = (
            Cell("–")
            if p.interval is None
            else Cell(f"{p.interval[0]:+.2f} to {p.interval[1]:+.2f}", p.interval[0])
        )
        cells = [Cell(p.a, p.a), Cell(p.b, p.b), Cell(f"{p.difference:+.2f}", p.difference)]
        cells += [interval, *(Cell(str(n)) for n in (p.tasks, p.wins, p.seeds))]
        rows.append(Row([*cells, _p(p.p_seeds), _p(p.p_tasks)]))
    return Table("All pairs, the larger differences first.", columns, rows)


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell("–")
    text = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return Cell(text, value, bold=value < ALPHA)


def sources(rows: Sequence[Published]) -> list[str]:
    """One sentence or two for each published row."""
    return [f"**{row.title}**: {row.source}" for row in rows]
