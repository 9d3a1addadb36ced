"""The benchmark of the offline suite: what it reads, and when a task is dropped."""

import numpy as np
import pytest

from benchmarks import pages
from benchmarks.accuracy import suite
from fact_jax.data.tasks import TEST, TRAIN, TRAIN_VAL, VAL

SCORES = {"chance": 10.0, "pixels": 11.0, "random": 9.0, "probe": 11.5}


@pytest.mark.parametrize(
    ("tuned", "word"),
    [
        ({}, ""),
        ({"linear": 97.0}, "linear probe"),
        ({"linear": 96.9, "full": 99.0, "fact_tt": 99.0}, ""),
        ({"linear": 10.0, "full": 11.9, "fact_tt": 11.0}, "chance"),
        ({"linear": 10.0, "full": 12.0, "fact_tt": 11.0}, ""),
    ],
)
def test_a_task_is_dropped_if_it_is_too_easy_or_all_is_at_chance(tuned, word):
    verdict = suite.verdict({**SCORES, **tuned})
    assert word in verdict
    assert bool(word) == bool(verdict)


def test_tuned_rows_are_the_first_seed_of_the_studys_main_part():
    cell = {"part": "main", "arm": "full", "task": "digits", "seed": 0, "accuracy": 90.0}
    others = [
        {**cell, "seed": 1, "accuracy": 94.0},
        {**cell, "task": "emoji", "accuracy": 1.0},
        {**cell, "arm": "lora", "accuracy": 1.0},
        {**cell, "part": "leaders", "accuracy": 1.0},
    ]
    assert suite.tuned({"cells": [cell, *others]}, "digits") == {"full": 90.0}


def test_pixels_are_one_channel_of_grey_pictures_and_three_of_coloured_ones():
    grey = np.full((2, 4, 4, 3), 255, np.uint8)
    coloured = grey.copy()
    coloured[1, 0, 0] = (0, 255, 0)
    assert suite.pixels(grey).shape == (2, 16)
    np.testing.assert_array_equal(suite.pixels(grey), 1)
    assert suite.pixels(coloured).shape == (2, 48)
    assert suite.pixels(coloured).min() == -1


def test_the_regression_solves_what_is_linear_and_nothing_else():
    generator = np.random.default_rng(0)
    sizes = {TRAIN: 80, VAL: 20, TRAIN_VAL: 100, TEST: 200}
    inputs = {split: generator.normal(size=(n, 3)) for split, n in sizes.items()}
    linear = {split: (x[:, 0] + x[:, 1] > 0).astype(int) for split, x in inputs.items()}
    assert suite.regression(inputs, linear) > 93
    parity = {split: (x[:, 0] * x[:, 1] > 0).astype(int) for split, x in inputs.items()}
    assert suite.regression(inputs, parity) < 65


def test_the_pages_table_leaves_empty_what_is_not_measured():
    row = {"task": "digits", "group": "natural", "classes": 10, "test": 1797, **SCORES, "drop": ""}
    head, _, line = pages.suite({"rows": [row]}).splitlines()
    assert line == "| digits | natural | 10 | 1,797 | 10.0 | 11.0 | 9.0 | 11.5 |  |  |  |"
    assert head.count("|") == line.count("|")
