"""The comparisons of benchmarks/quickstart.py and benchmarks/compare.py."""

import json
import math
import sys

import pytest
from PIL import Image

from benchmarks.accuracy import cells
from benchmarks.accuracy import compare as all_methods
from benchmarks.accuracy.quickstart import compare
from benchmarks.plots import plot_compare


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


@pytest.mark.slow
def test_the_comparison_of_methods_is_stored_and_drawn(tmp_path, monkeypatch):
    out, picture = tmp_path / "compare.json", tmp_path / "compare.png"
    words = ["--methods=linear,fact_tk", "--tasks=digits", "--seeds=0,1", "--epochs=1"]
    words += [f"--workdir={tmp_path / 'run'}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    all_methods.main()
    record = json.loads(out.read_text())
    rows = {(row["method"], row["task"]): row for row in record["rows"]}
    assert set(rows) == {("linear", "digits"), ("fact_tk", "digits")}
    row = rows["fact_tk", "digits"]
    results = [json.loads(p.read_text()) for p in tmp_path.glob("run/results/digits-fact_tk-*")]
    assert row["mean"] == pytest.approx(sum(r["accuracy"] for r in results) / 2)
    assert row["grid_size"] == 3
    assert row["num_factors"] == 9344
    (command,) = record["commands"]
    assert "--tasks digits --methods linear,fact_tk --seeds 0,1 --epochs 1" in command
    plot_compare.draw(record, picture)
    assert Image.open(picture).size == (1472, 352)


def cells_of(seed, accuracy, search=None, **settings):
    made = {"weights_sha256": "a", "epochs": 5, "image_size": 42, **settings}
    return [
        {
            "method": "noah",
            "task": task,
            "seed": seed,
            "accuracy": accuracy,
            "selection": {},
            "learning_rate": 0.1,
            "grid_size": 3,
            "num_factors": 10 + seed,
            "search": search,
            "factor_file_bytes": 100,
            "seconds": {"cell": 2.0},
            "settings": made,
            "environment": {"commit": f"of seed {seed}"},
        }
        for task in ("digits", "location")
    ]


def test_seeds_of_a_later_run_are_added_to_a_record(tmp_path):
    path, search = tmp_path / "r.json", {"best": [[1]], "history": [{"tried": 4}, {"tried": 7}]}
    cells.write(path, "first", cells_of(0, 80.0))
    cells.write(path, "second", cells_of(2, 86.0, search) + cells_of(1, 1.0))
    record = cells.write(path, "third", cells_of(1, 80.0))  # in the place of its former self
    assert record == json.loads(path.read_text())
    assert record["commands"] == ["first", "second", "third"]
    assert record["seconds"] == 16
    digits, location = record["rows"]
    assert (digits["mean"], digits["error"], digits["seeds"]) == (82.0, pytest.approx(2.0), 3)
    assert (digits["num_factors"], location["task"]) == (11, "location")
    found = [(c["seed"], c["accuracy"], c.get("architectures_tried")) for c in record["cells"]]
    assert found[::2] == [(0, 80.0, None), (1, 80.0, None), (2, 86.0, 7)]
    commits = [record["environments"][c["environment"]]["commit"] for c in record["cells"]]
    assert commits[::2] == ["of seed 0", "of seed 1", "of seed 2"]


def test_results_of_other_settings_are_not_added_to_a_record(tmp_path):
    path = tmp_path / "r.json"
    cells.write(path, "first", cells_of(0, 80.0))
    before = path.read_text()
    with pytest.raises(SystemExit, match=r"'epochs': 5.*'epochs': 6.*Choose another file"):
        cells.write(path, "second", cells_of(1, 80.0, epochs=6))
    assert path.read_text() == before


def test_numbers_are_short():
    assert [plot_compare.numbers(n) for n in (0, 1024, 99_949, 99_950, 1_216_896)] == [
        "0",
        "1.0K",
        "99.9K",
        "100K",
        "1.2M",
    ]
