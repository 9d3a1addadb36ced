"""The comparison that benchmarks/quickstart.py prints."""

import math

import pytest

from benchmarks.quickstart import compare


def result(method, accuracy):
    return {"task": "digits", "method": method, "accuracy": accuracy, "num_test": 400}


def test_differences_are_in_standard_errors_of_the_difference():
    linear, fact = compare(
        [result("linear", a) for a in (79.0, 80.0, 81.0)]
        + [result("fact_tt", a) for a in (90.0, 90.0, 90.0)]
    )
    assert (linear["mean"], linear["error"]) == (80.0, pytest.approx(3**-0.5))
    assert "difference" not in linear
    assert fact["difference"] == 10.0
    assert fact["ratio_seeds"] == pytest.approx(10 * math.sqrt(3))
    # 400 test images at 80 % and 90 %: 2 and 1.5 points of sampling error.
    both = math.sqrt(1 / 3 + 2.0**2 + 1.5**2)
    assert fact["ratio_seeds_and_sampling"] == pytest.approx(10 / both)


def test_one_seed_gives_no_errors():
    rows = compare([result("linear", 80.0), result("fact_tt", 90.0)])
    assert all(row["error"] is None and "difference" not in row for row in rows)
