"""Means over seeds and tasks, and their standard errors: the one place that computes them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Accuracies = Mapping[str, Mapping[int, float]]  # by task and seed
Groups = Sequence[Sequence[str]]  # of tasks


class Stat(NamedTuple):
    """A mean over seeds, its standard error (None where there is none), and the number of seeds."""

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


def average(accuracies: Accuracies, groups: Groups) -> Stat | None:
    """Mean of the groups' means over their tasks; None if a task is missing.

    The error is the standard error of the averages of single seeds; it is None if not all tasks
    have the same seeds.
    """
    tasks = [task for group in groups for task in group]
    if not tasks or any(not accuracies.get(task) for task in tasks):
        return None
    mean = _over_groups({task: stat([*accuracies[task].values()]).mean for task in tasks}, groups)
    if by_seed := seed_averages(accuracies, groups):
        return Stat(mean, stat(by_seed).error, len(by_seed))
    return Stat(mean, None, min(len(accuracies[task]) for task in tasks))


def seed_averages(accuracies: Accuracies, groups: Groups) -> list[float]:
    """The average of each seed, in the seeds' order; empty if not all tasks have the same seeds."""
    seeds, *others = (set(accuracies[task]) for group in groups for task in group)
    if any(other != seeds for other in others):
        return []
    return [
        _over_groups({t: accuracies[t][seed] for group in groups for t in group}, groups)
        for seed in sorted(seeds)
    ]


def _over_groups(values: Mapping[str, float], groups: Groups) -> float:
    return statistics.fmean(statistics.fmean(values[t] for t in group) for group in groups)


def sampling_error(share: float, num_images: int) -> float:
    """Standard error of a share of test images, by their number: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1 - share) / num_images)


def wilson_interval(share: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, which also has sense at 0 and at 1."""
    z, n = statistics.NormalDist().inv_cdf(0.975), num_images
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(
    measure: Callable[[np.ndarray], float | None], num_images: int, draws: int = 200
) -> tuple[float, tuple[float, float]]:
    """Standard error and 95 % interval of a measure that is no share, by drawing images anew.

    Args:
      measure: of the images of these rows, which may be there several times.
      num_images: test images.
      draws: samples of as many images; those without a measure are left out.
    """
    rng = np.random.default_rng(0)
    samples = (measure(rng.integers(num_images, size=num_images)) for _ in range(draws))
    values = [value for value in samples if value is not None]
    if len(values) < 2:
        return 0.0, (0.0, 100.0)
    low, high = np.quantile(values, [0.025, 0.975])
    return statistics.stdev(values), (float(low), float(high))
