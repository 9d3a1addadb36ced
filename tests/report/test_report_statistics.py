"""Means, errors and tests between systems, against hand-worked cases and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from fact_jax.report.averages import average, bootstrap, stat, wilson_interval
from fact_jax.report.published import published
from fact_jax.report.sections import vtab_section
from fact_jax.report.statistics import compare, holm, over_seeds, over_tasks, p_text


def test_stat_of_three_and_of_one():
    # 70, 72, 74: standard deviation 2 with n - 1, over the root of 3.
    assert stat([70.0, 72.0, 74.0]) == (72.0, pytest.approx(2 / math.sqrt(3)), 3)
    assert stat([70.0]) == (70.0, None, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "< 0.001"),
        (0.0012, "0.001"),
        (0.0497, "0.0497"),
        (0.0503, "0.0503"),
        (0.2, "0.200"),
    ],
)
def test_p_values_show_on_which_side_of_5_percent_they_are(value, text):
    assert p_text(value) == text


def test_average_is_of_the_group_means_and_its_error_of_the_seeds_averages():
    accuracies = {"a": {0: 60.0, 1: 64.0}, "b": {0: 80.0, 1: 80.0}, "c": {0: 10.0, 1: 30.0}}
    # Groups (a, b) and (c): seed 0: (70 + 10) / 2 = 40, seed 1: (72 + 30) / 2 = 51.
    found = average(accuracies, [["a", "b"], ["c"]])
    assert found == (45.5, pytest.approx(5.5), 2)  # 11 / sqrt(2) / sqrt(2)
    assert average(accuracies, [["a", "b", "c"]]).mean == pytest.approx(54.0)


def test_average_without_a_task_or_with_other_seeds():
    accuracies = {"a": {0: 60.0, 1: 64.0}, "b": {0: 80.0}}
    assert average(accuracies, [["a", "c"]]) is None
    assert average({"a": {}}, [["a"]]) is None
    assert average(accuracies, [[]]) is None
    assert average(accuracies, [["a", "b"]]) == (71.0, None, 1)


def test_averages_of_a_published_row_and_of_a_part_of_it():
    row = published()["vtab1k"]["fact_tt_le16"]["tasks"]
    whole = {task: {0: value} for task, value in row.items()}
    part = {task: values for task, values in whole.items() if task != "svhn"}
    means, parts = (
        {name: average(values, groups) for name, groups in vtab_section().averages.items()}
        for values in (whole, part)
    )
    assert means["group mean"].mean == pytest.approx(75.34, abs=0.005)
    assert means["mean of 19"].mean == pytest.approx(73.04, abs=0.005)
    assert parts["structured"].mean == pytest.approx(60.5, abs=0.005)
    assert [parts[name] for name in ("natural", "group mean", "mean of 19")] == [None] * 3


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        # 0.01 x 3, 0.02 x 2, 0.03 x 1 raised to what comes before; order and gaps are kept.
        ([0.03, None, 0.01, 0.02], [0.04, None, 0.03, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([None], [None]),
    ],
)
def test_holm_by_hand(raw, corrected):
    assert holm(raw) == pytest.approx(corrected)


@pytest.mark.parametrize(
    ("differences", "patterns"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2),  # of one sign: 2 of the 2^6 patterns are as extreme
        ([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4),  # the smallest one turned: two more
        ([0.0] * 6, 64),
    ],
)
def test_over_tasks_by_counting(differences, patterns):
    assert over_tasks(differences) == pytest.approx(patterns / 64)


def test_over_tasks_counts_differences_that_are_not_zero():
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert over_tasks(five + [0.0] * 14) is None
    assert over_tasks([*five, 6.0] + [0.0] * 13) is not None


@pytest.mark.parametrize("step", [0.01, 1.0])
def test_over_tasks_is_scipys_test(step):
    """Also where some differences are equal."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        differences = step * np.round(rng.normal(0.5, 2, 9) / step)
        assert over_tasks(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_over_seeds_is_welchs_test():
    """It needs two seeds each, and noise."""
    a, b = [75.0, 75.4, 75.2], [74.1, 74.9, 74.2]
    p, interval = over_seeds(a, b)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert p == pytest.approx(welch.pvalue)
    assert interval == pytest.approx(tuple(welch.confidence_interval(0.95)))
    assert over_seeds([75.0], [74.0, 73.0]) is None
    assert over_seeds([75.0, 75.0], [74.0, 74.0]) is None
    assert over_seeds([75.0, 75.0], [74.0, 74.5]) is not None


def systems(names, tasks, seeds=3, step=1.0):
    rng = np.random.default_rng(0)
    return {
        name: {
            task: {s: 60 + step * i + 5 * j + float(rng.normal(0, 0.1)) for s in range(seeds)}
            for j, task in enumerate(tasks)
        }
        for i, name in enumerate(names)
    }


def test_compare_puts_the_better_first_and_corrects_each_test_apart():
    tasks = [f"t{i}" for i in range(8)]
    three = systems(["low", "middle", "high"], tasks)
    compared = {(c.a, c.b): c for c in compare(three, [tasks])}
    assert set(compared) == {("middle", "low"), ("high", "low"), ("high", "middle")}
    for (a, b), c in compared.items():
        assert (c.tasks, c.wins, c.seeds) == (8, 8, 3)
        by_seed = [[np.mean([three[n][t][s] for t in tasks]) for s in range(3)] for n in (a, b)]
        assert c.difference == pytest.approx(np.mean(by_seed[0]) - np.mean(by_seed[1]))
        assert c.interval[0] < c.difference < c.interval[1]
        assert c.p_tasks == pytest.approx(3 * 2 / 2**8)  # all equal: three times the smallest
        raw = stats.ttest_ind(*by_seed, equal_var=False).pvalue
        assert raw <= c.p_seeds <= 3 * raw + 1e-12


def test_compare_uses_the_tasks_that_both_have():
    two = systems(["a", "b"], ["t0", "t1", "t2"], step=0.0)
    del two["a"]["t2"]
    (compared,) = compare(two, [["t0", "t1"], ["t2"]])
    assert (compared.tasks, compared.p_tasks) == (2, None)
    assert compared.p_seeds > 0.05  # equal noise
    assert compare({"a": {"t0": {0: 1.0}}, "b": {"t1": {0: 1.0}}}, [["t0", "t1"]]) == []


def test_compare_tests_nothing_where_tasks_have_different_seeds():
    """All seeds make the difference: a test of the common ones could say the opposite."""
    a = {"x": {0: 50.0, 1: 50.5, 2: 41.0}, "y": {0: 60.0, 1: 60.5}}
    b = {"x": {0: 49.0, 1: 49.5}, "y": {0: 59.0, 1: 59.5, 2: 62.0}}
    (compared,) = compare({"a": a, "b": b}, [["x", "y"]])
    assert (compared.p_seeds, compared.interval) == (None, None)
    for values in (a["x"], b["y"]):
        del values[2]
    (compared,) = compare({"a": a, "b": b}, [["x", "y"]])
    assert compared.p_seeds is not None


def test_few_shot_tasks_of_a_data_set_count_once():
    tasks = [f"t{i}" for i in range(12)]
    two = systems(["a", "b"], tasks)
    pairs = [tasks[i : i + 2] for i in range(0, 12, 2)]
    assert compare(two, [tasks])[0].p_tasks == pytest.approx(2 / 2**12)
    assert compare(two, [tasks], pairs)[0].p_tasks == pytest.approx(2 / 2**6)
    assert compare(two, [tasks], [tasks[:6], tasks[6:]])[0].p_tasks is None


def test_the_interval_of_a_share_holds_it_95_times_in_100():
    for share in (0.5, 0.9):
        draws = np.random.default_rng(0).binomial(100, share, 4000) / 100
        inside = [low <= share <= high for low, high in map(interval_of_100, draws)]
        assert 0.93 < np.mean(inside) < 0.97
    assert wilson_interval(1.0, 24)[1] == 1
    assert wilson_interval(1.0, 24)[0] == pytest.approx(24 / (24 + 1.96**2), abs=1e-4)


def interval_of_100(share):
    return wilson_interval(share, 100)


def test_the_bootstrap_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(50, 10, 400)
    error, (low, high) = bootstrap(lambda rows: float(values[rows].mean()), 400, draws=2000)
    assert error == pytest.approx(10 / 20, rel=0.1)
    assert (low, high) == pytest.approx((50 - 0.98, 50 + 0.98), abs=0.5)
    assert bootstrap(lambda rows: None, 400) == (0.0, (0.0, 100.0))
