"""Findings of an evaluation beyond its accuracy."""

import io

import numpy as np
import pytest
from PIL import Image

from fact_jax.sweep.findings import MOST, TILE, Findings
from fact_jax.sweep.result import Result


def stream(number=500, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (number, 8, 8, 3)).astype(np.uint8)
    return images, rng.integers(0, classes, number), rng.integers(0, classes, number)


def collect(images, labels, predicted, batch, classes=4):
    findings, logits = Findings(classes), scores(predicted, classes)
    for i in range(0, len(labels), batch):
        findings.add(images[i : i + batch], labels[i : i + batch], logits[i : i + batch])
    return findings


def scores(predicted, classes):
    """Logits whose largest is that of the predicted class."""
    return np.eye(classes, dtype=np.float32)[predicted]


def test_confusion_and_per_class_accuracy_are_counts():
    images, labels, predicted = stream()
    found = collect(images, labels, predicted, 64, classes=5)
    table = np.zeros((5, 5), int)
    for true, other, number in found.confusion:
        table[true, other] = number
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (labels, predicted), 1)
    np.testing.assert_array_equal(table, expected)
    *own, none = found.per_class_accuracy
    assert own == pytest.approx([100 * (predicted[labels == c] == c).mean() for c in range(4)])
    assert none is None


def test_the_draw_is_the_same_whatever_the_batches():
    data = stream()
    one, other = collect(*data, 64), collect(*data, 7)
    assert one.pictures() == other.pictures()
    assert one.confusion == other.confusion


def test_the_draw_is_fair():
    """All of a stream's wrong images are kept equally often, the last as often as the first."""
    number, times = 40, np.zeros(40)
    images = np.zeros((number, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(number)
    labels, predicted = np.zeros(number, int), np.ones(number, int)
    for seed in range(400):
        findings = Findings(2)
        findings._rng = np.random.default_rng(seed)
        for i in range(0, number, 8):
            findings.add(images[i : i + 8], labels[i : i + 8], scores(predicted[i : i + 8], 2))
        pixels = [e.image[0, 0, 0] for e in findings._examples[False]]
        assert len(set(pixels)) == MOST
        times[pixels] += 1
    # 80 expected each, with a standard deviation of 8.
    assert 80 - 5 * 8 < times.min() <= times.max() < 80 + 5 * 8


def test_pictures_are_wrong_ones_and_then_right_ones():
    images = np.repeat(np.array([10, 120, 240], np.uint8), 3).reshape(3, 1, 1, 3)
    images = np.tile(images, (1, 8, 8, 1))
    findings = Findings(3)
    findings.add(images, np.array([0, 1, 2]), scores([0, 2, 2], 3))
    content, what = findings.pictures()
    assert what["size"] == TILE
    assert (what["true"][0], what["predicted"][0]) == (1, 2)
    assert sorted(zip(what["true"][1:], what["predicted"][1:], strict=True)) == [(0, 0), (2, 2)]
    strip = np.asarray(Image.open(io.BytesIO(content)))
    assert strip.shape == (TILE, 3 * TILE, 3)
    shades = [strip[:, i * TILE + 8 : (i + 1) * TILE - 8].mean() for i in range(3)]
    expected = [{0: 10, 1: 120, 2: 240}[true] for true in what["true"]]
    assert shades == pytest.approx(expected, abs=4)


def test_without_images_there_is_an_empty_picture():
    content, what = Findings(3).pictures()
    assert what["true"] == []
    assert Image.open(io.BytesIO(content)).size == (TILE, TILE)


def test_what_is_kept_holds_on_to_no_batch():
    findings = collect(*stream(), 64)
    pictures = [e.image for examples in findings._examples.values() for e in examples]
    assert pictures
    assert all(image.base is None for image in pictures)


def test_measures_are_those_of_all_batches():
    images, labels, predicted = stream()
    found = collect(images, labels, predicted, 64)
    assert found.score() == found.measures["accuracy"] == 100 * (labels == predicted).mean()
    assert found.score("balanced_accuracy") == pytest.approx(np.mean(found.per_class_accuracy))
    assert found.num_images == 500


def test_of_several_labels_there_are_measures_alone():
    rng = np.random.default_rng(0)
    truth = rng.random((40, 3)) < 0.3
    findings = Findings(3, multi_label=True)
    findings.add(np.zeros((40, 8, 8, 3), np.uint8), truth, truth.astype(np.float32) - 0.5)
    assert findings.score() == findings.measures["map"] == 100
    assert findings.label_precision == [100, 100, 100]
    assert findings.confusion == []


@pytest.mark.parametrize(
    ("losses", "classes", "settings", "broke_down"),
    [
        ([3.0, 2.31], 10, {}, True),  # log 10 is 2.303
        ([3.0, 2.29], 10, {}, False),
        ([3.0, None], 10, {}, False),
        ([2.31], 10, {}, False),  # an epoch alone begins there
        ([3.0, 2.31], 0, {}, False),  # several labels
        ([3.0, 2.31], 10, {"consistency": "full"}, False),
        ([3.0, 2.31], 10, {"mock_data": True}, False),
        ([3.0, 2.31], 10, {"class_weights": "balanced"}, False),
    ],
)
def test_a_loss_no_lower_than_guessing_means_that_training_broke_down(
    losses, classes, settings, broke_down
):
    result = Result(
        **{"cell": "c", "method": "lora", "task": "digits", "seed": 0, "accuracy": 10.0},
        **{"losses": losses, "per_class_accuracy": [10.0] * classes, "settings": settings},
    )
    assert result.broke_down == broke_down
