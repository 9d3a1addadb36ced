"""Results read from disk: checked, as CSV and as pandas, and grouped into the rows of a table."""

import csv
import io
import itertools
import json
import math
import re

import numpy as np
import pytest
from report_results import result, write

from fact_jax.errors import UserError
from fact_jax.report.page import report_blocks
from fact_jax.report.records import (
    CSV_COLUMNS,
    csv_text,
    curves_frame,
    read_failures,
    read_results,
    results_frame,
)
from fact_jax.report.study import mixed_settings, read_study
from fact_jax.report.tables import published_rows
from fact_jax.sweep.result import VERSION, Result
from fact_jax.text import csv_field


def grid(methods=("linear", "lora"), tasks=("digits", "fashion"), seeds=(0, 1), **more):
    return [
        result(t, m, s, 80.0 + s, **more) for t, m, s in itertools.product(tasks, methods, seeds)
    ]


def test_results_are_read_sorted_with_their_workdir(tmp_path):
    write(tmp_path / "a", reversed(grid()))
    (tmp_path / "a" / "results" / ".digits.json.1a2b3c4d").write_text("{")  # half-written
    read = read_results(tmp_path / "a", tmp_path / "a")
    assert [r.cell for r in read] == sorted(r["cell"] for r in grid())
    assert {r.workdir for r in read} == {str(tmp_path / "a")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not sound JSON"),
        ("[]", "holds a list"),
        ("{}", "cell is missing"),
        ("[" * 100_000, "nested too deeply"),
        ("\0", "not sound JSON"),
        (json.dumps(result(accuracy=float("nan"))), "accuracy is nan"),
        (json.dumps(result(accuracy=1e9)), "accuracy is 1000000000.0, expected 0 to 100"),
        (json.dumps({**result(), "accuracy": "80"}), "accuracy is '80'"),
        (json.dumps(result(seed=9)), "cell is 'digits-lora-seed9', expected the file's name"),
        (json.dumps({**result(), "cell": "broken", "task": "no_such"}), "task is 'no_such'"),
    ],
)
def test_what_is_no_result_is_named_and_left_out(tmp_path, text, said):
    write(tmp_path, grid())
    (tmp_path / "results" / "broken.json").write_text(text)
    with pytest.warns(UserWarning, match=f"broken.json.*{said}.*left out"):
        assert len(read_results(tmp_path)) == 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"settings": []}, "settings is"),
        ({"confusion": [[30_000_000, 1, 1]]}, "confusion"),
        ({"confusion": [[-1, 0, 1]]}, r"confusion\[0\]\[0\] is -1"),
        ({"confusion": [[0, 1]]}, "2 "),
        ({"confusion": [[0, 2, 1]], "class_names": ["a", "b"]}, "class 2"),
        ({"class_names": ["a"], "per_class_accuracy": [1.0, 2.0]}, "2 entries for 1 class_names"),
        ({"per_class_accuracy": ["x"]}, "expected a number"),
        ({"losses": [1.0]}, "losses has 1"),
        ({"num_test": -1}, "num_test is -1"),
        ({"seconds": [1]}, "seconds is"),
        ({"environment": {"jax": []}}, "environment.jax"),
        ({"data": None}, "data is null"),
        ({"selection": {"scale=x": 1.0}}, "scale=x"),
        ({"selection": {"scale=nan": 1.0}}, "scale=nan"),
        ({"examples": {"file": "a", "size": 8, "true": [0], "predicted": []}}, "differ in length"),
        ({"search": {"best": [[1], [2], [3]], "fitness": 1.0, "history": []}}, "search.history"),
        (
            {"search": {"best": [[1]], "fitness": 1.0, "history": [{"best": 1.0, "tried": 1}]}},
            "NOAH",
        ),
        ({"seed": True}, "seed is True"),
        ({"num_factors": 10**19}, "num_factors is 1000"),
        ({"version": VERSION + 1}, f"version is {VERSION + 1}, expected 1 to {VERSION}"),
    ],
)
def test_every_field_has_its_type(tmp_path, more, said):
    refused = []
    write(tmp_path, [{**result(), **more, "cell": "a"}])
    assert read_results(tmp_path, refuse=refused.append) == []
    assert re.search(f"a.json is no record of a sweep: .*{said}", refused[0])


def test_a_result_is_written_with_its_version_and_kind(tmp_path):
    search = {"best": [[1]] * 3, "fitness": 1.0, "history": [{"best": 1.0, "tried": 5}]}
    fields = result(protocol="paper", grid_size=3, search=search, version=VERSION)
    content = Result(**fields).to_json()
    assert content.pop("kind") == {
        "protocol": "paper",
        "epoch": "best on test",
        "selection": "validation",
        "grid": 3,
        "architectures": 5,
    }
    assert {k: content[k] for k in fields} == fields
    write(tmp_path, [content])
    assert read_results(tmp_path) == [Result(**fields, workdir=str(tmp_path))]


def test_results_of_earlier_versions_are_read(tmp_path):
    """Without what later versions added, and with NaN where no accuracy was measured."""
    old = {k: result()[k] for k in ("cell", "task", "method", "seed", "accuracy")}
    nan = {**result(seed=1), "losses": [1.0, float("nan")], "test_accuracies": [float("nan"), 80.0]}
    write(tmp_path, [old, nan])
    read = read_results(tmp_path)
    assert [r.cell for r in read] == ["digits-lora-seed0", "digits-lora-seed1"]
    assert read[1].test_accuracies == [None, 80.0]
    assert len(report_blocks(read_study(tmp_path))) > 5


@pytest.mark.parametrize(
    "config", ['{"tasks": "no_such"}', '{"seeds": "0"}', '{"methods": [1]}', "[", '{"tasks": 5}']
)
def test_a_config_that_is_not_sound_is_left_out(tmp_path, config):
    write(tmp_path, [result()])
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "digits-lora-seed1.json").write_text('{"cell": ["x"], "message": 5}')
    study = read_study(tmp_path)
    assert study.missing is None
    assert [f["cell"] for f in study.failures] == ["digits-lora-seed1"]
    assert len(study.refused) == 2
    assert str(tmp_path / "config.json") in study.refused[1]


def test_no_work_directory_and_no_results_are_said(tmp_path):
    with pytest.raises(UserError, match="no folder 'results'"):
        read_results(tmp_path)
    write(tmp_path, [])
    with pytest.raises(UserError, match="no cell has finished"):
        read_study(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(UserError, match="results cannot be read"):
        read_study(tmp_path)
    for call, wrong in itertools.product((read_results, results_frame), (None, [None], 3, [3])):
        with pytest.raises(UserError, match="Expected work directories or results, found a"):
            call(wrong)


def test_failures_of_finished_cells_are_not_shown(tmp_path):
    failed = [
        {"cell": c, "error": "ValueError"} for c in ("digits-lora-seed0", "digits-lora-seed1")
    ]
    write(tmp_path, [result(seed=0)], failures=failed)
    assert [f["cell"] for f in read_failures(tmp_path)] == ["digits-lora-seed1"]


def csv_rows(*workdirs):
    return list(csv.DictReader(io.StringIO(csv_text(read_results(*workdirs)))))


def test_csv_has_every_cell_and_full_precision(tmp_path):
    value = 96.86323547363281
    write(tmp_path, [result(seed=s, accuracy=value + s, settings={"rank": 8}) for s in (1, 0)])
    rows = csv_rows(tmp_path)
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [r["cell"] for r in rows] == ["digits-lora-seed0", "digits-lora-seed1"]
    assert float(rows[0]["accuracy"]) == value
    assert json.loads(rows[0]["method_settings"]) == {"rank": 8}
    assert rows[0]["weights_sha256"] == "ab" * 32


def test_csv_of_two_workdirs_tells_them_apart(tmp_path):
    folders = [str(write(tmp_path / name, [result()])) for name in ("b", "a")]
    assert [row["workdir"] for row in csv_rows(*folders)] == folders


def test_csv_has_no_formulas_and_no_control_characters(tmp_path):
    """Texts that a spreadsheet would compute get an apostrophe; numbers stay numbers."""
    more = {"accuracy": 0.5, "settings": {"dtype": "@x"}, "cell": "a"}
    write(tmp_path, [result(method="=1+1\x1b[31m", **more)])
    (row,) = csv_rows(tmp_path)
    assert row["method"] == "'=1+1\\x1b[31m"
    assert row["dtype"] == "'@x"
    assert row["accuracy"] == "0.5"
    values = {"+a": "'+a", "-1": "'-1", "\t": "'\t", "\r": "'\r", "a=": "a=", -1: -1, None: None}
    assert {value: csv_field(value) for value in values} == values


def test_csv_has_the_same_bytes_after_kills(tmp_path):
    """Times, versions, commits and epochs run differ between such sweeps; accuracies do not."""
    more = {"seconds": {"train": 77.0, "cell": 99.0}, "epochs_run": 1, "stack": {"runs": 3}}
    more["environment"] = {**result()["environment"], "commit": "other"}
    for name, change, add in (("a", {}, 0), ("b", more, 0), ("c", more, 1e-12)):
        results = [{**r, **change, "accuracy": r["accuracy"] + add} for r in grid()]
        write(tmp_path / name, results)
    a, b, c = (csv_text(read_results(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_frames(tmp_path):
    write(tmp_path, grid())
    frame = results_frame(read_results(tmp_path))
    assert len(frame) == 8
    assert frame["seconds_cell"].tolist() == [2.0] * 8
    assert frame["commit"].tolist() == ["c0"] * 8
    assert frame.groupby(["method", "task"])["accuracy"].mean()["lora", "digits"] == 80.5
    for sources in ((str(tmp_path),), ([tmp_path],), (tmp_path, str(tmp_path))):
        assert results_frame(*sources).equals(frame)  # the same directory counts once
    curves = curves_frame(read_results(tmp_path))
    assert curves_frame(tmp_path).equals(curves)
    assert curves.groupby("cell")["loss"].sum().tolist() == [6.0] * 8
    first = curves[curves["cell"] == "digits-lora-seed0"]["test_accuracy"].tolist()
    np.testing.assert_equal(first, [math.nan, math.nan, 80.0])
    assert curves_frame([]).empty


def labels(*workdirs):
    return [s.label for s in read_study(*workdirs).systems]


def test_seeds_and_tasks_of_two_workdirs_are_one_row(tmp_path):
    write(tmp_path / "a", grid(seeds=(0,)))
    write(tmp_path / "b", grid(seeds=(1, 2)))
    study = read_study(tmp_path / "a", tmp_path / "b")
    assert [s.label for s in study.systems] == ["linear", "lora"]
    assert study.systems[1].accuracies["digits"] == {0: 80.0, 1: 81.0, 2: 82.0}
    assert not study.duplicates
    write(tmp_path / "c", grid(tasks=("location",)))
    assert labels(tmp_path / "a", tmp_path / "c") == ["linear", "lora"]


def test_the_same_cell_twice_counts_once_and_is_reported(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [result(accuracy=80.0 if name == "a" else 90.0)])
    study = read_study(tmp_path / "a", tmp_path / "b")
    assert len(study.results) == 2
    assert study.systems[0].accuracies == {"digits": {0: 80.0}}
    assert study.duplicates == (("digits-lora-seed0", str(tmp_path / "a"), str(tmp_path / "b")),)


def test_another_rank_is_another_row(tmp_path):
    for rank in (4, 8):
        write(tmp_path / f"r{rank}", grid(methods=("lora",), settings={"rank": rank}))
    assert labels(tmp_path / "r4", tmp_path / "r8") == ["lora (rank=4)", "lora (rank=8)"]
    # Also where they have no task in common.
    write(tmp_path / "r16", grid(methods=("lora",), tasks=("location",), settings={"rank": 16}))
    assert len(labels(tmp_path / "r4", tmp_path / "r16")) == 2


def test_finishes_of_one_folder_are_one_row(tmp_path):
    """Each file has a work directory, with its copy, and each task a rate."""
    trained = {"rank": 8, "learning_rate": 1e-2}
    write(tmp_path / "fresh", grid(methods=("lora",), settings=trained))
    folders = []
    for way in ("plain-8", "pictures-8"):
        for task, seed in itertools.product(("digits", "fashion"), (0, 1)):
            name = f"{task}-lora-seed{seed}-finish-12ab"
            folders.append(tmp_path / way / name)
            start = {"start_from": f"rounded/{way}/{name}/start", "start_sha256": f"{task}{seed}"}
            settings = {"rank": 8, "learning_rate": 1e-3 * len(task), "epochs": 1, **start}
            write(folders[-1], [result(task, seed=seed, settings=settings)])
    study = read_study(tmp_path / "fresh", *folders)
    texts = ["lora", "lora (start_from=plain-8)", "lora (start_from=pictures-8)"]
    assert [s.label for s in study.systems] == texts
    assert [len(s.results) for s in study.systems] == [4, 4, 4]
    assert (mixed_settings(study)[1], study.duplicates) == ([], ())


def test_rows_of_one_rank_are_told_apart_by_settings_of_the_run(tmp_path):
    for rank, bits in ((8, 0), (8, 4), (4, 0)):
        settings = {"rank": rank, **({"factor_bits": bits} if bits else {})}
        write(tmp_path / f"{rank}-{bits}", [result(settings=settings)])
    texts = ["lora (rank=8)", "lora (rank=8, factor_bits=4)", "lora (rank=4)"]
    assert labels(*(tmp_path / name for name in ("8-0", "8-4", "4-0"))) == texts


def test_other_run_settings_are_rows_by_workdir_and_said_to_be_mixed(tmp_path):
    write(tmp_path / "short", grid(methods=("lora",)))
    write(tmp_path / "long", grid(methods=("lora",), settings={"image_size": 64}))
    study = read_study(tmp_path / "short", tmp_path / "long")
    assert [s.label for s in study.systems] == ["lora (short)", "lora (long)"]
    shared, uneven = mixed_settings(study)
    assert set(shared) == {"image_size"}
    assert sorted(shared["image_size"]) == [32, 64]
    assert uneven == []


def test_seeds_with_other_settings_in_a_row_are_found(tmp_path):
    write(tmp_path, [result(seed=0), result(seed=1, settings={"epochs": 99})])
    assert mixed_settings(read_study(tmp_path))[1] == ["lora"]


def test_order_and_missing_cells_come_from_the_config(tmp_path):
    config = {"methods": "lora,linear", "tasks": "fashion,digits", "seeds": [0, 1]}
    write(tmp_path, grid()[:-1], config, [{"cell": "fashion-lora-seed1", "error": "E"}])
    study = read_study(tmp_path)
    assert [s.label for s in study.systems] == ["lora", "linear"]
    assert [t.name for t in study.tasks] == ["fashion", "digits"]
    assert study.missing == ()
    (tmp_path / "failures" / "fashion-lora-seed1.json").unlink()
    assert read_study(tmp_path).missing == ("fashion-lora-seed1",)


def test_published_rows_and_their_sources(tmp_path):
    """The config's row decides, else the method's name; notes on the re-run stay with it."""
    methods = ("fact_tt", "convpass", "fact_cp", "noah")
    config = {"methods": ",".join(methods), "fact_tt": {"published": "fact_tt_4"}}
    write(tmp_path, [result("dtd", m) for m in methods], config)
    rows = {row.title: row for _, row in published_rows(read_study(tmp_path).systems)}
    assert list(rows) == [
        "published fact_tt_4 (best on test)",
        "re-run fact_tt (OSU, val)",
        "published convpass (best on test)",
        "re-run convpass (OSU, val)",
        "published noah (best on test)",
    ]
    assert rows["published fact_tt_4 (best on test)"].values == {"group mean": 73.5}
    assert rows["published fact_tt_4 (best on test)"].params == 8448
    for title, row in rows.items():
        assert ("One group's re-run" in row.source) == title.startswith("re-run")


def test_few_shot_tasks_are_in_the_order_of_their_shots(tmp_path):
    names = ["digits", "digits_1shot", "digits_2shot", "digits_16shot"]
    write(tmp_path, grid(tasks=reversed(names)))
    assert [t.name for t in read_study(tmp_path).tasks] == names
