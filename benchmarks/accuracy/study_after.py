"""Smaller ranks and ensembles, which the study makes of trained tasks without training."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accuracy.rounding import BATCH, Tested
from benchmarks.accuracy.study_plan import Item
from fact_jax import FacTTT, Predictor
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.rounding import round_to
from fact_jax.data.tasks import TEST
from fact_jax.files.factors import OF_THE_FILE, to_bytes
from fact_jax.tuning.method import Factors, Method, count_parameters


class Derived(NamedTuple):
    """Accuracy on test in %, numbers without heads, and bytes of all files together."""

    accuracy: float
    numbers: int
    bytes: int


def _probabilities(tested: Tested, method: Method, factors: Factors) -> np.ndarray:
    """The classes' probabilities [n, c] of the test images."""
    images, _ = tested.images(TEST)
    task = tested.task._replace(method=method, factors=factors)
    logits = Predictor(tested.model, tested.base, task, BATCH).logits(images)
    return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


def _accuracy(tested: Tested, probabilities: np.ndarray) -> float:
    _, labels = tested.images(TEST)
    return 100 * float((probabilities.argmax(axis=1) == labels).mean())


def rounded(tested: Sequence[Tested], rank: int) -> Derived:
    """A FacT-TT rounded to a smaller rank, without pictures and without training."""
    (one,) = tested
    config, old = one.model.config, one.task.method
    small = round_to(FacTTT(rank, old.scale), Increments.of(old, one.task.factors, config), config)
    trainable = {"factors": small.factors, "head": one.task.head}
    metadata = {k: v for k, v in one.task.metadata.items() if k not in OF_THE_FILE}
    size = len(to_bytes(small.method, trainable, config, metadata))
    accuracy = _accuracy(one, _probabilities(one, small.method, small.factors))
    return Derived(accuracy, count_parameters(small.factors), size)


def ensemble(tested: Sequence[Tested]) -> Derived:
    """The mean of the probabilities of several trainings of a task."""
    parts = [_probabilities(one, one.task.method, one.task.factors) for one in tested]
    results = [one.result for one in tested]
    return Derived(
        _accuracy(tested[0], np.mean(parts, axis=0)),
        sum(result.num_factors or 0 for result in results),
        sum(result.factor_file_bytes or 0 for result in results),
    )


AFTER: dict[str, Callable[[Sequence[Tested]], Derived]] = {
    "rounded8": lambda tested: rounded(tested, 8),
    "rounded4": lambda tested: rounded(tested, 4),
    "ensemble": ensemble,
    "together": ensemble,
}
"""The forms that are not trained, with what makes them of trained tasks."""


def sources(item: Item, leaders: Sequence[str], seeds: Sequence[int]) -> list[Item]:
    """The trained cells of the main part that an item is made of.

    An `ensemble` has all `seeds` of its method, and `together` has all `leaders` with one seed.
    """
    one = item._replace(part="main", form="main")
    if item.form == "ensemble":
        return [one._replace(seed=seed) for seed in seeds]
    if item.form == "together":
        return [one._replace(method=method) for method in leaders]
    return [one]


def checksum(item: Item, digests: Sequence[str]) -> str:
    """The checksum of an item that is made of cells with these checksums."""
    text = " ".join([item.form, *digests])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
