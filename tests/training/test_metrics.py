"""Measures of predictions, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from fact_jax.training.metrics import (
    average_precision,
    calibration_error,
    measures,
    multi_label_measures,
    sigmoid,
    softmax,
)


def predictions(n: int = 200, c: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(c, n, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    logits = rng.normal(size=(n, c)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return labels, logits


def test_measures_are_scikit_learns():
    labels, logits = predictions()
    p, predicted = softmax(logits), logits.argmax(-1)
    result = measures(labels, logits)
    assert result["accuracy"] == pytest.approx(100 * sk.accuracy_score(labels, predicted))
    balanced = sk.balanced_accuracy_score(labels, predicted)
    assert result["balanced_accuracy"] == pytest.approx(100 * balanced)
    assert result["macro_f1"] == pytest.approx(
        100 * sk.f1_score(labels, predicted, average="macro")
    )
    assert result["auroc"] == pytest.approx(100 * sk.roc_auc_score(labels, p, multi_class="ovr"))
    assert result["accuracy"] != pytest.approx(
        100 * balanced
    )  # the classes are not equally frequent


def test_measures_of_several_labels_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth = rng.random((150, 4)) < [0.5, 0.2, 0.1, 0.3]
    logits = (rng.normal(size=truth.shape) + truth).round(1).astype(np.float32)  # with ties
    result = multi_label_measures(truth, logits)
    assert result["map"] == pytest.approx(100 * sk.average_precision_score(truth, logits))
    assert result["auroc"] == pytest.approx(100 * sk.roc_auc_score(truth, logits))
    assert result["macro_f1"] == pytest.approx(
        100 * sk.f1_score(truth, logits > 0, average="macro")
    )
    assert result["exact"] == pytest.approx(100 * sk.accuracy_score(truth, logits > 0))


def test_classes_without_examples_are_left_out():
    labels, logits = predictions()
    wider = np.pad(logits, ((0, 0), (0, 2)), constant_values=-1e3)
    assert measures(labels, wider) == pytest.approx(measures(labels, logits))
    truth = np.eye(5, dtype=bool)[labels]
    assert np.isnan(average_precision(np.pad(truth, ((0, 0), (0, 2))), wider)[5:]).all()


def test_measures_that_are_not_defined_are_none():
    one_class = measures(np.zeros(3, int), np.eye(3, dtype=np.float32))
    assert one_class["auroc"] is None
    none = multi_label_measures(np.zeros((3, 2), bool), np.ones((3, 2), np.float32))
    assert (none["map"], none["auroc"]) == (None, None)


def test_calibration_error_is_the_gap_of_each_bin():
    # Nine of ten right at 0.8 in one bin, none of ten at 0.5 in another.
    confidence = np.repeat([0.8, 0.5], 10)
    right = np.arange(20) < 9
    assert calibration_error(confidence, right) == pytest.approx((0.1 + 0.5) / 2)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_probabilities_of_large_logits_are_finite():
    large = np.array([[1e4, -1e4, 0.0]], np.float32)
    np.testing.assert_allclose(softmax(large), [[1, 0, 0]])
    np.testing.assert_allclose(sigmoid(large), [[1, 0, 0.5]])
