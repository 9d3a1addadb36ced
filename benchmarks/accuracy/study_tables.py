"""Tables of docs/results.md about all methods, from the study's record, whole or in part."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from scipy.stats import rankdata

from benchmarks.accuracy.study_arms import (
    Arm,
    arms_of,
    compared,
    groups_of,
    leaders_of,
)
from benchmarks.accuracy.study_plan import PARTS, items, planned
from benchmarks.common import markdown, numbers
from fact_jax.report.averages import Stat, stat
from fact_jax.report.sections import units_of
from fact_jax.report.statistics import MIN_TASKS, Comparison, holm, p_text

Record = Mapping[str, Any]
BASELINE = "fact_tt"
NONE = "–"


def stat_text(value: Stat | None) -> str:
    return NONE if value is None else value.text(1)


def p_cell(value: float | None) -> str:
    return NONE if value is None else p_text(value)


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "−")


def interval_text(pair: Comparison) -> str:
    if pair.interval is None:
        return NONE
    return " to ".join(signed(value) for value in pair.interval)


def progress(record: Record) -> str:
    """The number of cells that are there, of how many, by part."""
    rows, leaders = [], leaders_of(record)
    for part in PARTS:
        wanted = {item.key for item in items(part, planned(part, leaders))}
        there = {(c["part"], c["arm"], c["task"], c["seed"]) for c in record["cells"]} & wanted
        failed = sum(failure["part"] == part for failure in record["failures"])
        hours = sum(c["seconds"] for c in record["cells"] if c["part"] == part) / 3600
        complete = sum(bool(arm.seeds) for arm in arms_of(record, part).values())
        all_arms = len({arm for _, arm, _, _ in wanted})
        share = f"{len(there):,} of {len(wanted):,}" if wanted else "after the main part"
        rows.append([part, share, f"{complete} of {all_arms}", f"{failed}", f"{hours:.1f}"])
    head = ["part", "cells", "arms with all tasks", "failed cells", "hours of the cells"]
    return markdown(head, rows)


def _best_first(arms: Mapping[str, Arm]) -> list[Arm]:
    """The arms, best mean first, those without a mean last."""
    means = {name: arm.mean([*groups_of(arm.tasks).values()]) for name, arm in arms.items()}
    return sorted(arms.values(), key=lambda arm: -(m.mean if (m := means[arm.name]) else -1e9))


def mean_ranks(arms: Mapping[str, Arm]) -> dict[str, float]:
    """The mean over the tasks of each arm's rank, 1 for the best; of arms that have all tasks."""
    whole = {name: arm for name, arm in arms.items() if arm.seeds}
    if not whole:
        return {}
    tasks = next(iter(whole.values())).tasks
    values = [
        [-statistics.fmean(arm.accuracies[task].values()) for task in tasks]
        for arm in whole.values()
    ]
    ranks = rankdata(values, axis=0).mean(axis=1)
    return dict(zip(whole, map(float, ranks), strict=True))


def by_group(record: Record, part: str = "main") -> str:
    """The means of each arm of a part over the groups of tasks."""
    arms = arms_of(record, part)
    ranks, rows, groups = mean_ranks(arms), [], {}
    for arm in _best_first(arms):
        groups = groups_of(arm.tasks)
        means = [stat_text(arm.mean([tasks])) for tasks in groups.values()]
        rank = f"{ranks[arm.name]:.1f}" if arm.name in ranks else NONE
        whole = stat_text(arm.mean([*groups.values()]))
        size = [numbers(arm.numbers), f"{arm.bytes:,.0f}"]
        rows.append([arm.title, *size, *means, whole, rank, str(len(arm.seeds))])
    head = ["method", "numbers", "bytes a task", *groups, "mean of groups", "mean rank", "seeds"]
    return markdown(head, rows)


def by_task(record: Record, part: str = "main") -> str:
    """The accuracy of each arm of a part on each task, over all of its seeds."""
    arms = arms_of(record, part)
    tasks = next(iter(arms.values())).tasks if arms else ()
    rows = []
    for arm in _best_first(arms):
        values = [arm.by_task.get(task) for task in tasks]
        texts = [stat_text(stat([*some.values()])) if some else NONE for some in values]
        rows.append([arm.title, *texts])
    return markdown(["method", *tasks], rows)


def against_baseline(record: Record, part: str = "main") -> str:
    """Each arm of a part less FacT-TT 16, with both tests after Holm's correction."""
    arms = arms_of(record, part)
    if BASELINE not in arms:
        return ""
    others = [arm for arm in _best_first(arms) if arm.name != BASELINE]
    pairs = [(arm, compared(arm, arms[BASELINE])) for arm in others]
    found = [(arm, pair) for arm, pair in pairs if pair is not None]
    p_seeds = holm([pair.p_seeds for _, pair in found])
    p_tasks = holm([pair.p_tasks for _, pair in found])
    rows = [
        [
            arm.title,
            signed(pair.difference),
            interval_text(pair),
            f"{pair.wins} of {pair.tasks}",
            p_cell(seeds),
            p_cell(tasks),
        ]
        for (arm, pair), seeds, tasks in zip(found, p_seeds, p_tasks, strict=True)
    ]
    head = ["method", "points over FacT-TT", "95 % interval", "better on", "p, seeds", "p, tasks"]
    return markdown(head, rows)


def leaders(record: Record) -> str:
    """The leaders with PACE, few bits, smaller ranks and together, beside their plain training."""
    plain, found = arms_of(record, "main"), []
    for arm in arms_of(record, "leaders").values():
        other = plain.get(arm.cells[0]["method"])
        if other is not None and (pair := compared(arm, other)):
            found.append((arm, pair))
    found.sort(key=lambda row: (row[0].cells[0]["method"], -row[1].difference))
    p_seeds = holm([pair.p_seeds for _, pair in found])
    p_tasks = holm([pair.p_tasks for _, pair in found])
    rows = []
    for (arm, pair), seeds, tasks in zip(found, p_seeds, p_tasks, strict=True):
        accuracy = stat_text(arm.mean([*groups_of(arm.tasks).values()]))
        size = [f"{arm.bytes:,.0f}", accuracy, signed(pair.difference), interval_text(pair)]
        better = f"{pair.wins} of {pair.tasks}"
        rows.append([arm.title, *size, better, p_cell(seeds), p_cell(tasks)])
    head = ["method", "bytes a task", "accuracy, %", "points over the plain one"]
    return markdown([*head, "95 % interval", "better on", "p, seeds", "p, tasks"], rows)


def what_tests_see(record: Record) -> str:
    """The least p-value and the least difference that the tests of the table above can show."""
    arms = arms_of(record, "main")
    base = arms.get(BASELINE)
    if base is None:
        return ""
    units = len(units_of(base.tasks))
    others = [arm for arm in arms.values() if arm is not base and arm.seeds and base.seeds]
    count, pairs = len(others), [compared(arm, base) for arm in others]
    halves = [(p.interval[1] - p.interval[0]) / 2 for p in pairs if p and p.interval]
    least = 2 / 2**units
    width = f"{statistics.median(halves):.1f}" if halves else NONE
    power = "cannot be made"
    if units >= MIN_TASKS:
        power = f"{least:.4f}, after Holm {min(1.0, count * least):.3f}"
    drawn = f"{base.sampling_error:.1f}" if base.seeds else NONE
    return markdown(
        ["measure", "value"],
        [
            ["comparisons with FacT-TT; of them with an interval", f"{count}; {len(halves)}"],
            [f"least p of Wilcoxon's test on {units} sets of pictures", power],
            ["half of the 95 % interval over seeds, points, median of the comparisons", width],
            ["standard error of FacT-TT's mean by the drawing of the test images, points", drawn],
        ],
    )


def findings(record: Record) -> str:
    """The negative findings: edges of the grid, divergence, arms below the probe, failures."""
    arms, rows = arms_of(record, "main"), []
    edges = [
        f"{arm.title}, the {edge} on {count} of {tasks} tasks"
        for arm in arms.values()
        for edge, count in arm.at_the_edge.items()
        if (tasks := len(arm.chosen)) and count > tasks / 2
    ]
    rows.append(["rates at an edge of the grid on most tasks", "; ".join(edges) or "none"])
    rows.append(
        [
            "candidates with less than half of the best one's accuracy on val200",
            ", ".join(text for arm in arms.values() if (text := _lost(arm))) or "none",
        ]
    )
    if probe := arms.get("linear"):
        groups = [*groups_of(probe.tasks).values()]
        least, means = probe.mean(groups), [(arm, arm.mean(groups)) for arm in arms.values()]
        less = [(arm, m.mean - least.mean) for arm, m in means if m and least]
        below = [f"{arm.title} {signed(points)}" for arm, points in less if points < 0]
        rows.append(["mean below the linear probe's, points", ", ".join(below) or "none"])
    rows.append(
        [
            "trainings with less than half of the accuracy on val200 that chose their rate",
            _broken(arms, arms_of(record, "leaders").values()),
        ]
    )
    failed = {failure["arm"] for failure in record["failures"]}
    rows.append(["methods with failed cells", ", ".join(sorted(failed)) or "none"])
    return markdown(["finding", "where"], rows, texts=2)


def _lost(arm: Arm) -> str:
    """How many of an arm's candidates were far behind the best one; empty without any."""
    scores = [list(cell["selection"].values()) for cell in arm.cells]
    lost = [
        score is None or score < max(s for s in several if s) / 2
        for several in scores
        for score in several
    ]
    return f"{arm.title} {sum(lost)} of {len(lost)}" if any(lost) else ""


def _broken(arms: Mapping[str, Arm], leaders: Iterable[Arm]) -> str:
    """The trainings that broke down at a rate that had done well on val200.

    Most leaders take the rate of the plain training, and have no choice of their own.
    """
    with_choice = [(arm, arm.chosen) for arm in arms.values()]
    for arm in leaders:
        plain = arms.get(arm.cells[0]["method"])
        with_choice.append((arm, arm.chosen or (plain.chosen if plain else {})))
    broken = [
        f"{arm.title} on {task}, seed {seed}: {accuracy:.1f} %"
        for arm, chosen in with_choice
        for task, by_seed in arm.by_task.items()
        for seed, accuracy in by_seed.items()
        if accuracy < chosen.get(task, 0.0) / 2
    ]
    return "; ".join(broken) or "none"
