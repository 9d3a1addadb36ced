"""Few-shot lists as a view: rows of any source, K training images a class."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int

from fact_jax.data.sources import HELD_OUT_SEED, Identity, Provenance, Record, Source
from fact_jax.data.tasks import FewShot, Task
from fact_jax.errors import UserError


def draw(
    labels: Sequence[int] | Int[np.ndarray, " n"],
    num_classes: int,
    shots: int,
    seed: int,
    what: str,
    *,
    names: Sequence[str] | None = None,
) -> Int[np.ndarray, " rows"]:
    """Rows of K images of each class, in rising order: the first K of each class's rows, permuted.

    The lists of fewer shots are parts of the lists of more. numpy's `default_rng(seed)` permutes
    class by class. UserError, with `what` in it, if a class has fewer than K rows.
    """
    labels, rng, rows = np.asarray(labels), np.random.default_rng(seed), []
    for label in range(num_classes):
        candidates = np.flatnonzero(labels == label)
        if len(candidates) < shots:
            raise UserError(
                f"{what} has {len(candidates)} images of class {names[label] if names else label}, "
                f"fewer than the {shots} asked for."
            )
        rows.append(rng.permutation(candidates)[:shots])
    return np.sort(np.concatenate(rows))


def list_seed(split: str) -> int | None:
    """The seed of a training list, None for another split."""
    match = re.fullmatch(r"train-seed(\d{1,9})", split)
    return int(match[1]) if match else None


class Shots:
    """The splits 'train-seed0', 'train-seed1', ..., 'val' and 'test' of a source; `Splits`.

    Training lists and 'val' are drawn from 'train' unless the source has them.

    Attributes:
      provenance: entries that the record of the source lacks.
    """

    def __init__(self, task: Task, few_shot: FewShot, source: Source):
        self._task, self._few, self._source = task, few_shot, source
        self.provenance: Provenance = {
            "shots": few_shot.shots,
            "split_source": source.describe_draw(few_shot.shots),
            "numpy": np.__version__,
        }

    def size(self, split: str) -> int:
        stored, shots = self._find(split)
        return shots * self._task.num_classes if shots else self._source.size(stored)

    def records(self, split: str, size: int) -> Iterator[Record]:
        stored, shots = self._find(split)
        if not shots or self._source.mocked:  # of random labels there may be too few of a class
            yield from self._source.records(stored, size)
            return
        rows = self._rows(split)[:size]
        wanted, last = set(rows.tolist()), int(rows[-1])
        for row, record in enumerate(self._source.records(stored, last + 1)):
            if row in wanted:
                yield record

    def identity(self, split: str) -> Identity:
        """The same for all numbers of shots where the pictures are."""
        stored, shots = self._find(split)
        key: Identity = {**self._source.identity(stored), "task": self._task.dataset}
        if shots:
            pool = f"{key['instruction']}, {self._few.held_out} held out, "
            drawn = f"{0 if split == 'val' else shots} shots, numpy {np.__version__}"
            key["instruction"] = (pool if key["instruction"] else "") + drawn
        return key

    def _find(self, split: str) -> tuple[str, int]:
        """The split of the source to read, and images a class to draw from it, 0 for all."""
        splits, seed = self._source.splits, list_seed(split)
        if seed is not None:
            drawn = "train" in splits
            return ("train", self._few.shots) if drawn else (f"train-seed{seed}", 0)
        if split not in ("val", "test"):
            raise UserError(
                f"Task {self._task.name} has no split {split!r}; it has train-seed0, train-seed1 "
                f"and so on, val and test."
            )
        return (split, 0) if split in splits else ("train", self._few.held_out)

    def _rows(self, split: str) -> Int[np.ndarray, " rows"]:
        """Rows of 'train' that a split consists of."""
        seed = list_seed(split)
        if seed is None:
            return self._held_out
        free = np.arange(len(self._labels))
        if "val" not in self._source.splits:
            free = np.setdiff1d(free, self._held_out)
        rows: np.ndarray = free[self._draw(free, self._few.shots, seed, self._source.pool)]
        return rows

    @cached_property
    def _labels(self) -> Int[np.ndarray, " n"]:
        return self._source.labels("train")

    @cached_property
    def _held_out(self) -> Int[np.ndarray, " rows"]:
        rows = np.arange(len(self._labels))
        return self._draw(rows, self._few.held_out, HELD_OUT_SEED, self._source.place)

    def _draw(
        self, rows: Int[np.ndarray, " n"], shots: int, seed: int, pool: str
    ) -> Int[np.ndarray, " rows"]:
        what, names = f"Task {self._task.name}: {pool}", self._source.class_names
        labels, num_classes = self._labels[rows], self._task.num_classes
        return draw(labels, num_classes, shots, seed, what, names=names)
