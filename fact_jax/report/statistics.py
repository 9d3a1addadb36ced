"""Means, standard errors, and tests of the difference between two systems.

Two questions are asked, and each has its own unit of replication:

- *Would it hold on other tasks of this kind?* The tasks are the sample: Wilcoxon's signed-rank test
  on the differences of the tasks' means over seeds. With fewer than six tasks it cannot reach 5 %.
- *Is it more than the noise of training, on these very tasks?* The seeds are the sample: each seed
  of a system gives one average over the tasks, and Welch's t-test compares the two systems'
  averages. It is the difference over the root of the summed squares of the two standard errors.

A paired t-test over all pairs of task and seed would count the seeds of a task as if they were so
many tasks; it is not made. Nor are seeds paired: another method draws other numbers from the same
seed, and pairing three seeds would leave two degrees of freedom.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MIN_TASKS = 6  # two-sided, 2 / 2**5 is more than 0.05
Accuracies = Mapping[str, Mapping[int, float]]  # by task and seed


class Stat(NamedTuple):
    """Mean over seeds in %, its standard error (None of one seed), and the number of seeds."""

    mean: float
    error: float | None
    seeds: int


def stat(values: Sequence[float]) -> Stat:
    """Mean and standard error of at least one value."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Stat(statistics.fmean(values), error, n)


def average(accuracies: Accuracies, groups: Sequence[Sequence[str]]) -> Stat | None:
    """Mean of the groups' means over their tasks; None if a task is missing.

    The error is that of the averages which the seeds have each for itself; where the tasks have not
    all the same seeds there is none.
    """
    tasks = [task for group in groups for task in group]
    if not tasks or any(not accuracies.get(task) for task in tasks):
        return None

    def over(values: Mapping[str, float]) -> float:
        return statistics.fmean(statistics.fmean(values[t] for t in g) for g in groups)

    mean = over({task: statistics.fmean(accuracies[task].values()) for task in tasks})
    seeds = set(accuracies[tasks[0]])
    if any(set(accuracies[task]) != seeds for task in tasks):
        return Stat(mean, None, min(len(accuracies[task]) for task in tasks))
    by_seed = [over({task: accuracies[task][seed] for task in tasks}) for seed in sorted(seeds)]
    return Stat(mean, stat(by_seed).error, len(seeds))


class Comparison(NamedTuple):
    """System `a` less system `b`: `difference` of the averages over `tasks` tasks (`a` is better on
    `wins` of them) in points, its 95 % interval over at least `seeds` seeds (this pair alone), and
    the p-values of the two tests after Holm's correction; None where a test cannot be made."""

    a: str
    b: str
    tasks: int
    wins: int
    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p_tasks: float | None
    p_seeds: float | None


def over_tasks(differences: Sequence[float]) -> float | None:
    """p-value of Wilcoxon's signed-rank test, two-sided; None below six differences that are not
    zero, which it leaves out."""
    from scipy.stats import wilcoxon

    if len(differences) >= MIN_TASKS and not any(differences):
        return 1.0
    if sum(map(bool, differences)) < MIN_TASKS:
        return None
    return float(wilcoxon(differences).pvalue)


def over_seeds(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float]] | None:
    """p-value of Welch's t-test, two-sided, and the 95 % interval of mean(a) - mean(b); None with
    less than two values of either, or if they do not vary (no noise to compare with)."""
    from scipy.stats import ttest_ind

    if min(len(a), len(b)) < 2 or (max(a) == min(a) and max(b) == min(b)):
        return None
    with warnings.catch_warnings():  # one of two may well not vary
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(0.95)
    return float(test.pvalue), (float(interval.low), float(interval.high))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p-values that are there; the others stay None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def compare(
    systems: Mapping[str, Accuracies],
    groups: Sequence[Sequence[str]],
    units: Sequence[Sequence[str]] | None = None,
) -> list[Comparison]:
    """All pairs of systems on the tasks that both have, averaged as in `average`, or, where one of
    them lacks a task, plainly; pairs without a common task are left out. `a` is the better of a
    pair. Wilcoxon's test counts each of the `units`, by default each task, once: few-shot tasks of
    one data set are no independent tasks. Holm's correction counts all pairs, apart for each of the
    two tests."""
    rows, raw_tasks, raw_seeds = [], [], []
    share = {task: 1 / (len(groups) * len(group)) for group in groups for task in group}
    for a, b in itertools.combinations(systems, 2):
        common = [t for t in share if systems[a].get(t) and systems[b].get(t)]
        if not common:
            continue
        weights = share if len(common) == len(share) else dict.fromkeys(common, 1 / len(common))
        by_task = {
            t: statistics.fmean(systems[a][t].values()) - statistics.fmean(systems[b][t].values())
            for t in common
        }
        difference = math.fsum(weights[t] * by_task[t] for t in common)
        if difference < 0:
            a, b, difference = b, a, -difference
            by_task = {t: -d for t, d in by_task.items()}
        by_seed = [_averages(systems[s], weights) for s in (a, b)]
        tested = over_seeds(*by_seed)
        seeds = min(map(len, by_seed))
        by_unit = [
            statistics.fmean(by_task[t] for t in own)
            for unit in units or [[t] for t in common]
            if (own := [t for t in unit if t in by_task])
        ]
        raw_tasks.append(over_tasks(by_unit))
        raw_seeds.append(tested[0] if tested else None)
        interval = tested[1] if tested else None
        wins = sum(d > 0 for d in by_task.values())
        rows.append((a, b, len(common), wins, seeds, difference, interval))
    return [
        Comparison(*row, p_tasks, p_seeds)
        for row, p_tasks, p_seeds in zip(rows, holm(raw_tasks), holm(raw_seeds), strict=True)
    ]


def _averages(accuracies: Accuracies, weights: Mapping[str, float]) -> list[float]:
    """The weighted mean over the tasks that each seed has for itself; none if not all tasks have
    the same seeds, since a difference of all would not be what is tested."""
    first, *others = (set(accuracies[task]) for task in weights)
    if any(seeds != first for seeds in others):
        return []
    return [
        math.fsum(w * accuracies[task][s] for task, w in weights.items()) for s in sorted(first)
    ]
