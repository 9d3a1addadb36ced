"""The study: its order, its record, and what is left to do of it."""

import argparse
import dataclasses
import json

import pytest

from benchmarks.accuracy import study as program
from benchmarks.accuracy import study_record
from benchmarks.accuracy.study import Study, configs_of, share_of
from benchmarks.accuracy.study_plan import PARTS, Item, cell_of, digest, items
from configs import study
from fact_jax.sweep.plan import task_names
from fact_jax.sweep.result import Result

ITEM = Item("main", "main", "fact_tt", "digits", 0)


@pytest.fixture
def forms():
    no_changes = argparse.Namespace(**dict.fromkeys(program.CHANGES))
    return configs_of("main", no_changes)[0]


def result(item=ITEM, accuracy=90.0, rate=0.01):
    return Result(
        cell=f"{item.task}-{item.method}-seed{item.seed}",
        **{"method": item.method, "task": item.task, "seed": item.seed, "accuracy": accuracy},
        **{"learning_rate": rate, "grid_size": 3, "seconds": {"cell": 2.0}},
        environment={"jax": "1"},
    )


def test_what_the_claims_are_about_comes_first(forms):
    listed = list(items("main", forms))
    assert len(set(listed)) == len(listed)
    arms = list(dict.fromkeys(item.arm for item in listed))
    assert tuple(arms[: len(study.FIRST)]) == study.FIRST
    tasks = task_names(study.TASKS)
    assert len(listed) == len(arms) * len(tasks) * len(study.SEEDS)
    first = listed[: len(study.FIRST) * len(tasks)]
    assert {(item.arm, item.task) for item in first} == {(a, t) for a in study.FIRST for t in tasks}
    assert {item.seed for item in first} == {study.SEEDS[0]}


def test_shares_divide_the_tasks(forms):
    listed = list(items("main", forms))
    one, other = share_of(listed, "1/2"), share_of(listed, "2/2")
    assert sorted([*one, *other]) == sorted(listed)
    assert not {item.task for item in one} & {item.task for item in other}


def test_later_seeds_keep_the_rate_of_the_first(forms):
    first = cell_of(ITEM, forms["main"])
    later = cell_of(ITEM._replace(seed=1), forms["main"], rate=0.03)
    assert len(first.candidates) == 3
    assert [c.learning_rate for c in later.candidates] == [0.03]
    assert later.method == first.method


def test_the_checksum_tells_settings_weights_and_pictures_apart(forms):
    cell = cell_of(ITEM, forms["main"])
    longer = dataclasses.replace(cell, settings=dataclasses.replace(cell.settings, epochs=11))
    made_of = [(cell, "w", "p"), (longer, "w", "p"), (cell, "v", "p"), (cell, "w", "q")]
    assert len({digest(*parts) for parts in made_of}) == 4
    assert digest(cell, "w", "p") == digest(cell_of(ITEM, forms["main"]), "w", "p")


def test_a_record_is_written_whole_and_read_again(tmp_path):
    path, lock = tmp_path / "study.json", tmp_path / "work" / "lock"
    with study_record.changed(path, lock) as record:
        study_record.add_failure(record, ITEM, ValueError("too\nhot"), "a")
        study_record.add_result(record, ITEM._replace(seed=1), result(), "b")
    with study_record.changed(path, lock) as record:
        study_record.add_result(record, ITEM, result(accuracy=91.0), "c")
    record = study_record.read(path)
    assert record["failures"] == []
    assert [(c["seed"], c["accuracy"], c["digest"]) for c in record["cells"]] == [
        (0, 91.0, "c"),
        (1, 90.0, "b"),
    ]
    assert (record["seconds"], record["environments"]) == (4.0, [{"jax": "1"}])
    assert all(
        json.loads(line.rstrip(",")) for line in path.read_text().splitlines() if "arm" in line
    )


def test_a_write_that_fails_leaves_the_record(tmp_path):
    path, lock = tmp_path / "study.json", tmp_path / "lock"
    study_record.write(path, study_record.read(path))
    with pytest.raises(TypeError), study_record.changed(path, lock) as record:
        record["cells"] = [{"part": object()}]
    assert study_record.read(path)["cells"] == []


class FakeRunner:
    """A runner that trains nothing."""

    def __init__(self):
        data = argparse.Namespace(provenance={"fingerprint": "p"})
        feed = argparse.Namespace(data=lambda task: data)
        self.trainer, self.ran = argparse.Namespace(feed=feed, weights_sha256="w"), []

    def run(self, cells, results):
        self.ran += [(cell.seed, len(cell.candidates)) for cell in cells]
        yield result(ITEM._replace(seed=cells[0].seed))


def test_the_study_goes_on_from_its_record(tmp_path, monkeypatch, forms):
    path, runner = tmp_path / "study.json", FakeRunner()
    monkeypatch.setattr(Study, "runner", lambda self, form: runner)
    work = Study(path, tmp_path, "command", forms)
    assert work.run(ITEM._replace(seed=1)) == ""  # without the first seed there is no rate
    assert "90.0 %" in work.run(ITEM)
    assert "90.0 %" in work.run(ITEM._replace(seed=1))
    again = Study(path, tmp_path, "command", forms)
    assert [again.run(ITEM._replace(seed=seed)) for seed in (0, 1)] == ["", ""]
    assert runner.ran == [(0, 3), (1, 1)]
    runner.trainer.feed.data("digits").provenance["fingerprint"] = "other pictures"
    assert "90.0 %" in again.run(ITEM)
    assert study_record.read(path)["commands"] == ["command"]


def test_parts_are_forms_of_the_config():
    for forms in PARTS.values():
        assert all(study.get_config(form).methods for form in forms)
