"""Tests of the difference between two systems.

Two questions are asked, and each has its own unit of replication:

- *Would it hold on other tasks of this kind?* The tasks are the sample: Wilcoxon's signed-rank test
  on the differences of the tasks' means over seeds. With fewer than six tasks it cannot reach 5 %.
- *Is it more than the noise of training, on these very tasks?* The seeds are the sample: each seed
  of a system gives one average over the tasks, and Welch's t-test compares the two systems'
  averages. It divides the difference by the root of the summed squares of the standard errors.

We make no paired t-test over all pairs of task and seed, because it would count the seeds of a task
as further tasks. We do not pair seeds either: another method draws other numbers from the same
seed, and pairing three seeds would leave two degrees of freedom. In few-shot tasks a seed also
draws the training images, the same for all methods; unpaired, the test is cautious there.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fact_jax.report.averages import Accuracies, Groups, average, seed_averages, stat

MIN_TASKS = 6  # two-sided, 2 / 2**5 is more than 0.05


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


def p_text(value: float) -> str:
    """A p-value in three digits, or in four where three would not show its side of 5 %."""
    if value < 0.001:
        return "< 0.001"
    text = f"{value:.3f}"
    return f"{value:.4f}" if text == "0.050" else text


def over_tasks(differences: Sequence[float]) -> float | None:
    """p-value of Wilcoxon's signed-rank test, two-sided, which leaves out zeros; None with fewer
    than six other differences, or 1 if at least six are all zero.

    Up to 16 differences are tested exactly here, because SciPy takes seconds where some are equal.
    """
    from scipy.stats import rankdata, wilcoxon

    values = np.array([value for value in differences if value], float)
    if len(differences) >= MIN_TASKS and not len(values):
        return 1.0
    if len(values) < MIN_TASKS:
        return None
    if len(values) > 16:
        return float(wilcoxon(differences).pvalue)
    ranks, sums = rankdata(np.abs(values)), np.zeros(1)
    for rank in ranks:  # of all sets of differences that might be the positive ones
        sums = np.concatenate([sums, sums + rank])
    positive = ranks[values > 0].sum()
    return float(min(1.0, 2 * min((sums <= positive).mean(), (sums >= positive).mean())))


def over_seeds(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float]] | None:
    """p-value of Welch's t-test, two-sided, and the 95 % interval of mean(a) - mean(b); None with
    fewer than two values of either, or if neither varies (no noise to compare with)."""
    from scipy.stats import ttest_ind

    if min(len(a), len(b)) < 2 or (max(a) == min(a) and max(b) == min(b)):
        return None
    with warnings.catch_warnings():  # one of the two may be constant
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(0.95)
    return float(test.pvalue), (float(interval.low), float(interval.high))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of all p-values that are not None; the others stay None."""
    ordered = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        adjusted[i] = largest
    return adjusted


def compare(
    systems: Mapping[str, Accuracies], groups: Groups, units: Groups | None = None
) -> list[Comparison]:
    """Compares all pairs of systems on the tasks that both have; `a` is the better of a pair.

    Tasks are averaged as in `average`, or equally if one of the two lacks a task. Pairs without a
    common task are left out. Wilcoxon's test counts each of the `units`, by default each task,
    once, because few-shot tasks of one data set are not independent. Holm's correction counts all
    pairs, separately for each of the two tests.
    """
    tasks = [task for group in groups for task in group]
    pairs: list[Comparison] = []
    for a, b in itertools.combinations(systems, 2):
        common = [t for t in tasks if systems[a].get(t) and systems[b].get(t)]
        if common:
            shared = groups if len(common) == len(tasks) else [common]
            pairs.append(_compare(systems, a, b, shared, units or [[t] for t in common]))
    p_tasks, p_seeds = (holm([getattr(p, name) for p in pairs]) for name in ("p_tasks", "p_seeds"))
    return [
        pair._replace(p_tasks=over, p_seeds=noise)
        for pair, over, noise in zip(pairs, p_tasks, p_seeds, strict=True)
    ]


def _compare(
    systems: Mapping[str, Accuracies], a: str, b: str, groups: Groups, units: Groups
) -> Comparison:
    """One pair on tasks that both have, with uncorrected p-values."""
    one, other = average(systems[a], groups), average(systems[b], groups)
    assert one is not None
    assert other is not None
    if one.mean < other.mean:
        a, b, one, other = b, a, other, one
    better = {
        task: stat([*systems[a][task].values()]).mean - stat([*systems[b][task].values()]).mean
        for group in groups
        for task in group
    }
    # Seeds that differ by task make no average of a seed, and a test of the common ones could say
    # the opposite of the difference.
    tested = over_seeds(seed_averages(systems[a], groups), seed_averages(systems[b], groups))
    by_unit = [
        stat(differences).mean
        for unit in units
        if (differences := [better[t] for t in unit if t in better])
    ]
    return Comparison(
        a,
        b,
        tasks=len(better),
        wins=sum(difference > 0 for difference in better.values()),
        seeds=min(one.seeds, other.seeds),
        difference=one.mean - other.mean,
        interval=tested[1] if tested else None,
        p_tasks=over_tasks(by_unit),
        p_seeds=tested[0] if tested else None,
    )
