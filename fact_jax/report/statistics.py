"""Means, standard errors, and tests of the difference between two systems.

Two questions are asked, and each has its own unit of replication:

- *Would it hold on other tasks of this kind?* The tasks are the sample: Wilcoxon's signed-rank test
  on the differences of the tasks' means over seeds. With fewer than six tasks it cannot reach 5 %.
- *Is it more than the noise of training, on these very tasks?* The seeds are the sample: each seed
  of a system gives one average over the tasks, and Welch's t-test compares the two systems'
  averages. It divides the difference by the root of the summed squares of the standard errors.

We make no paired t-test over all pairs of task and seed, because it would count the seeds of a task
as further tasks. We do not pair seeds either: another method draws other numbers from the same
seed, and pairing three seeds would leave two degrees of freedom.
"""

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MIN_TASKS = 6  # two-sided, 2 / 2**5 is more than 0.05
Accuracies = Mapping[str, Mapping[int, float]]  # by task and seed


class Stat(NamedTuple):
    """Mean over seeds in %, its standard error (None for one seed), and the number of seeds."""

    mean: float
    error: float | None
    seeds: int

    def text(self, digits: int) -> str:
        """Mean and, if there is one, ± standard error."""
        error = "" if self.error is None else f" ± {self.error:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"


def stat(values: Sequence[float]) -> Stat:
    """Mean and standard error of at least one value."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Stat(statistics.fmean(values), error, n)


def average(accuracies: Accuracies, groups: Sequence[Sequence[str]]) -> Stat | None:
    """Mean of the groups' means over their tasks; None if a task is missing.

    The error is the standard error of the averages of single seeds; it is None if not all tasks
    have the same seeds.
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
    """p-value of Wilcoxon's signed-rank test, two-sided, which leaves out zeros; None with fewer
    than six other differences, or 1 if at least six are all zero."""
    from scipy.stats import wilcoxon

    if len(differences) >= MIN_TASKS and not any(differences):
        return 1.0
    if sum(map(bool, differences)) < MIN_TASKS:
        return None
    return float(wilcoxon(differences).pvalue)


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
    systems: Mapping[str, Accuracies],
    groups: Sequence[Sequence[str]],
    units: Sequence[Sequence[str]] | None = None,
) -> list[Comparison]:
    """Compares all pairs of systems on the tasks that both have; `a` is the better of a pair.

    Tasks are averaged as in `average`, or equally if one of the two lacks a task. Pairs without a
    common task are left out. Wilcoxon's test counts each of the `units`, by default each task,
    once, because few-shot tasks of one data set are not independent. Holm's correction counts all
    pairs, separately for each of the two tests.
    """
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
            statistics.fmean(by_task[t] for t in shared)
            for unit in units or [[t] for t in common]
            if (shared := [t for t in unit if t in by_task])
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
    """The weighted mean over the tasks for each seed; empty if not all tasks have the same seeds,
    because the test would then be of another difference than the reported one."""
    first, *others = (set(accuracies[task]) for task in weights)
    if any(seeds != first for seeds in others):
        return []
    return [
        math.fsum(w * accuracies[task][s] for task, w in weights.items()) for s in sorted(first)
    ]
