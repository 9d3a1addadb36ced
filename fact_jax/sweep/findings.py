"""Findings of an evaluation besides its accuracy: confusion counts, pictures to look at."""

import io
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

TILE = 64  # pixels
MOST = 8  # pictures of each kind


class _Example(NamedTuple):
    key: float
    image: np.ndarray
    true: int
    predicted: int


class Findings:
    """Collects them batch by batch; the same ones whenever the same images come."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        self._counts: Counter[tuple[int, int]] = Counter()
        self._rng = np.random.default_rng(0)
        self._examples: dict[bool, list[_Example]] = {False: [], True: []}  # by right or not

    def add(self, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
        """A batch: images uint8 [b, y, x, 3], labels and predicted classes [b]."""
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
            for c in range(self._num_classes)
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
