"""Findings of an evaluation: measures, confusion counts, pictures to look at."""

import functools
import io
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fact_jax.training.metrics import average_precision, measures, multi_label_measures

TILE = 64  # pixels
MOST = 8  # pictures of each kind


class _Example(NamedTuple):
    key: float
    image: np.ndarray
    true: int
    predicted: int


class Findings:
    """Collects them batch by batch; the same ones whenever the same images come.

    Of a multi-label task there are measures only: its confusion and its pictures are empty.
    """

    def __init__(self, num_classes: int, multi_label: bool = False):
        self.num_classes, self.multi_label = num_classes, multi_label
        self._labels: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rng = np.random.default_rng(0)
        self._examples: dict[bool, list[_Example]] = {False: [], True: []}  # by right or not

    def add(self, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
        """A batch: images uint8 [b, y, x, 3], labels [b] or [b, c], logits [b, c]."""
        self._labels.append(np.array(labels))
        self._logits.append(np.array(logits))
        if self.multi_label:
            return
        predicted = np.argmax(logits, axis=-1)
        self._counts.update(zip(labels.tolist(), predicted.tolist(), strict=True))
        keys = self._rng.random(len(labels))  # the lowest are a fair draw from a stream of any size
        for right, examples in self._examples.items():
            rows = np.flatnonzero((labels == predicted) == right)
            rows = rows[np.argsort(keys[rows], kind="stable")][:MOST]
            new = [  # copies: a view would keep the whole batch
                _Example(keys[i], images[i].copy(), int(labels[i]), int(predicted[i]))
                for i in rows
                if len(examples) < MOST or keys[i] < examples[-1].key
            ]
            self._examples[right] = sorted([*examples, *new], key=lambda e: e.key)[:MOST]

    @property
    def num_images(self) -> int:
        return sum(map(len, self._labels))

    @functools.cached_property
    def measures(self) -> dict[str, float | None]:
        """All measures of the task's kind, in % (`training/metrics.py`)."""
        measure = multi_label_measures if self.multi_label else measures
        return measure(np.concatenate(self._labels), np.concatenate(self._logits))

    def score(self, measure: str = "") -> float:
        """The measure in %, by default the task's own; NaN where it is not defined."""
        if not self.multi_label and measure in ("", "accuracy"):  # without all other measures
            right = sum(number for (true, guess), number in self._counts.items() if true == guess)
            return 100.0 * right / self.num_images
        value = self.measures[measure or "map"]
        return float("nan") if value is None else value

    @property
    def label_precision(self) -> list[float | None]:
        """Average precision of each label of a multi-label task in %; None without examples."""
        truth, logits = np.concatenate(self._labels), np.concatenate(self._logits)
        values = 100.0 * average_precision(truth.astype(bool), logits)
        return [None if np.isnan(value) else float(value) for value in values]

    @property
    def confusion(self) -> list[tuple[int, int, int]]:
        """[true class, predicted class, number] of every pair that occurred, in order."""
        return [(*pair, number) for pair, number in sorted(self._counts.items())]

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Accuracy of each class in %; None for classes without images."""
        totals: Counter[int] = Counter()
        for (true, _), number in self._counts.items():
            totals[true] += number
        return [
            100.0 * self._counts[c, c] / totals[c] if totals[c] else None
            for c in range(self.num_classes)
        ]

    def pictures(self) -> tuple[bytes, dict[str, Any]]:
        """A JPEG of a row of tiles, at most 8 wrong ones and then at most 8 right ones, and of
        what: {"size", "true", "predicted"}."""
        examples = [*self._examples[False], *self._examples[True]]
        strip = Image.new("RGB", (TILE * max(len(examples), 1), TILE))
        for i, example in enumerate(examples):
            image = Image.fromarray(example.image)
            how = Image.Resampling.LANCZOS if image.width > TILE else Image.Resampling.NEAREST
            strip.paste(image.resize((TILE, TILE), how), (i * TILE, 0))
        content = io.BytesIO()
        strip.save(content, "JPEG", quality=85)
        what = {"true": [e.true for e in examples], "predicted": [e.predicted for e in examples]}
        return content.getvalue(), {"size": TILE, **what}
