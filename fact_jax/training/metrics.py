"""Measures of predictions, in NumPy: accuracy and its companions, ranking, calibration.

Letters: `n` examples, `c` classes. Measures are in %. The definitions are those of
scikit-learn, with which the tests compare them; classes without an example are left out of means.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
# Measures that settings can be chosen by, besides the task's own; all are better when larger.
SINGLE_LABEL = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
MULTI_LABEL = ("map", "macro_f1", "auroc")
CALIBRATION_BINS = 15


def softmax(logits: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Probabilities of classes of which an example has one, in float64."""
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """Probabilities of labels that do not exclude each other, in float64."""
    probabilities: Array = 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))
    return probabilities


def probabilities(logits: Float[Array, "n c"], multi_label: bool) -> Float[Array, "n c"]:
    """Probabilities of classes, which are independent of each other in a multi-label task."""
    return sigmoid(logits) if multi_label else softmax(logits)


def measures(labels: Int[Array, " n"], logits: Float[Array, "n c"]) -> dict[str, float | None]:
    """All measures of a task whose examples have one class each.

    Returns:
      accuracy, balanced_accuracy (mean recall of the classes), macro_f1 (over the classes that
      occur or are predicted), auroc (each class against the rest, mean) and ece (the expected
      calibration error). None where a measure is not defined: an AUROC needs examples of two
      classes.
    """
    predicted, probabilities = np.argmax(logits, axis=-1), softmax(logits)
    truth = labels[:, None] == np.arange(logits.shape[1])
    guesses = predicted[:, None] == np.arange(logits.shape[1])
    right = predicted == labels
    return {
        "accuracy": 100.0 * int(right.sum()) / len(right),
        "balanced_accuracy": _mean(_recall(truth, guesses)),
        "macro_f1": _mean(_f1(truth, guesses)),
        "auroc": _mean(_auroc(truth, probabilities)),
        "ece": 100.0 * calibration_error(probabilities.max(axis=-1), right),
    }


def multi_label_measures(
    labels: Bool[Array, "n c"], logits: Float[Array, "n c"]
) -> dict[str, float | None]:
    """All measures of a task whose examples have any number of labels.

    Returns:
      map (mean average precision over the labels), macro_f1 (at a probability of one half), auroc
      (mean over the labels), exact (share of examples with all labels right) and ece (of all
      decisions, label by label). None where a measure is not defined.
    """
    truth, probabilities = labels.astype(bool), sigmoid(logits)
    guesses = logits > 0
    right = guesses == truth
    confidence = np.maximum(probabilities, 1 - probabilities)
    return {
        "map": _mean(average_precision(truth, logits)),
        "macro_f1": _mean(_f1(truth, guesses)),
        "auroc": _mean(_auroc(truth, logits)),
        "exact": 100.0 * int(right.all(axis=-1).sum()) / len(right),
        "ece": 100.0 * calibration_error(confidence.ravel(), right.ravel()),
    }


def average_precision(truth: Bool[Array, "n c"], scores: Float[Array, "n c"]) -> Float[Array, " c"]:
    """Average precision of each label, a share: the sum of precisions times the steps of recall.

    Examples of equal scores count as one step. NaN for labels that no example has.
    """
    return np.array([_average_precision(t, s) for t, s in zip(truth.T, scores.T, strict=True)])


def _average_precision(truth: Bool[Array, " n"], scores: Float[Array, " n"]) -> float:
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores
    recall = hits[last] / hits[-1]
    precision = hits[last] / (last + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def calibration_error(
    confidence: Float[Array, " n"], right: Bool[Array, " n"], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error (Guo et al., 2017).

    Args:
      confidence: the probability that each prediction was given.
      right: whether it was right.
      bins: number of equally wide bins of confidence.

    Returns:
      A share: the mean over the bins of |accuracy - mean confidence|, weighted by their examples.
    """
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _auroc(truth: Bool[Array, "n c"], scores: Float[Array, "n c"]) -> Float[Array, " c"]:
    """Area under the curve of each class against the rest, by ranks (Mann and Whitney)."""
    positives = truth.sum(axis=0).astype(np.float64)
    negatives = len(truth) - positives
    ranks = np.stack([_ranks(column) for column in scores.T], axis=1)
    wins = np.sum(ranks * truth, axis=0) - positives * (positives + 1) / 2
    return _ratio(wins, positives * negatives)


def _ranks(scores: Float[Array, " n"]) -> Float[Array, " n"]:
    """Ranks from 1 in rising order; equal scores have the mean of their ranks."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _recall(truth: Bool[Array, "n c"], guesses: Bool[Array, "n c"]) -> Float[Array, " c"]:
    return _ratio((truth & guesses).sum(axis=0), truth.sum(axis=0))


def _f1(truth: Bool[Array, "n c"], guesses: Bool[Array, "n c"]) -> Float[Array, " c"]:
    hits = (truth & guesses).sum(axis=0)
    return _ratio(2 * hits, truth.sum(axis=0) + guesses.sum(axis=0))


def _ratio(part: Array, whole: Array) -> Float[Array, " c"]:
    """``part / whole``, NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: Float[Array, " c"]) -> float | None:
    """The mean of the shares that are defined, in %; None without any."""
    defined = values[~np.isnan(values)]
    return 100.0 * float(defined.mean()) if len(defined) else None
