"""The study: its order, its record, and what is left to do of it."""

import argparse
import dataclasses
import itertools
import json
import math
import time
from pathlib import Path

import pytest

from benchmarks.accuracy import leaderboard, study_claims, study_page, study_record, study_tables
from benchmarks.accuracy import study as program
from benchmarks.accuracy.leaderboard import entries, steps
from benchmarks.accuracy.study import Study, configs_of, share_of
from benchmarks.accuracy.study_after import checksum, sources
from benchmarks.accuracy.study_arms import Arm, arms_of, compared, leaders_of, pareto
from benchmarks.accuracy.study_plan import PARTS, Item, cell_of, digest, items, planned
from benchmarks.common import with_tables
from benchmarks.plots import plot_leaderboard
from configs import study
from fact_jax.report.sections import units_of
from fact_jax.sweep.plan import Candidate, task_names
from fact_jax.sweep.result import Result

ROOT = Path(__file__).parents[2]
NO_CHANGES = argparse.Namespace(**dict.fromkeys((*program.CHANGES, "weights")))
ITEM = Item("main", "main", "fact_tt", "digits", 0)


@pytest.fixture
def forms():  # of the main part
    return configs_of("main", (), NO_CHANGES)[0]


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
    later = cell_of(ITEM._replace(seed=1), forms["main"], {"learning_rates": (0.03,)})
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
    path = tmp_path / "study.json"
    with study_record.changed(path) as record:
        study_record.add_failure(record, ITEM, ValueError("too\nhot"), "a")
        study_record.add_result(record, ITEM._replace(seed=1), result(), "b")
    with study_record.changed(path) as record:
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
    path = tmp_path / "study.json"
    study_record.write(path, study_record.read(path))
    with pytest.raises(TypeError), study_record.changed(path) as record:
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


# The page


def made_up(part, num_items, forms, seeds=study.SEEDS):
    """A record of the first items; the accuracy falls with the place of the arm."""
    listed = [item for item in items(part, forms) if item.seed in seeds][:num_items]
    arms = list(dict.fromkeys(item.arm for item in listed))
    cells = []
    for item in listed:
        accuracy = 90.0 - 2 * arms.index(item.arm) + 0.1 * item.seed
        selection = {"learning_rate=0.01": accuracy, "learning_rate=0.03": 10.0}
        cells.append(
            {
                **dict(zip(("part", "arm", "task", "seed"), item.key, strict=True)),
                **{"method": item.method, "form": item.form, "accuracy": accuracy},
                **{"selection": selection if item.seed == 0 else {}, "learning_rate": 0.01},
                **{"num_factors": 1000, "factor_file_bytes": 5000, "seconds": 36.0},
                **{"num_test": 1000},
            }
        )
    return {**study_record.read(study_record.RECORD), "cells": cells, "failures": []}


@pytest.mark.parametrize("num_items", [0, 3, 25, 10**6])
def test_the_page_can_be_made_of_any_part_of_the_record(forms, num_items):
    record = made_up("main", num_items, forms)
    tables = {mark: table(record) for mark, table in study_page.TABLES.items()}
    assert f"| main | {min(num_items, len(record['cells']))} of " in tables["study_progress"]
    page = "".join(f"<!-- {mark} -->\n" for mark in tables)
    assert all(line[0] in "|<" for line in with_tables(page, tables).splitlines())


def test_a_complete_record_answers_the_claims(forms):
    record = made_up("main", 10**6, forms)
    claims = study_claims.claims(record).splitlines()[2:]
    answers = dict(line.strip("| ").split(" | ")[:2] for line in claims)
    assert answers["FacT-TT is on par with LoRA"] == "yes, or better"  # it is six points better
    assert answers["FacT-TT beats full fine-tuning"] == "yes, on these tasks"
    assert answers["the smallest FacT-TT beats full fine-tuning"].startswith("no, it is worse")
    groups = study_tables.by_group(record).splitlines()[2:]
    assert groups[0].startswith("| FacT-TT | 1.0K | 5,000 | 90.1 ± 0.1 |")
    assert groups[0].endswith("| 1.0 | 3 |")


def test_an_answer_needs_both_tests_to_hold_on_other_tasks():
    claim = study_claims.Claim("a beats b", "a", "b")
    pair = compared(
        arm_of("a", lambda task, seed: 60.0 + seed, study.SEEDS),
        arm_of("b", lambda task, seed: 50.0 + seed, study.SEEDS),
    )
    assert study_claims.answer(claim, pair, 0.01, 0.01) == "yes"
    assert study_claims.answer(claim, pair, 0.01, 0.06) == "yes, on these tasks"
    assert study_claims.answer(claim, pair, 0.06, 0.01) == "open"
    assert study_claims.answer(claim, pair, None, 0.01) == "open: one seed"


def test_means_are_over_the_seeds_that_all_tasks_have(forms):
    cells = made_up("main", 10**6, forms)["cells"]
    tasks = task_names(study.TASKS)
    kept = [c for c in cells if c["arm"] == "lora" and (c["seed"] < 2 or c["task"] == tasks[0])]
    arm = arms_of({"cells": kept}, "main")["lora"]
    assert arm.seeds == [0, 1]
    assert arm.mean([tasks]).seeds == 2
    without = [c for c in kept if c["task"] != tasks[-1]]
    assert arms_of({"cells": without}, "main")["lora"].mean([tasks]) is None


def test_bytes_are_a_mean_over_the_tasks_however_many_seeds_each_has(forms):
    cells = [c for c in made_up("main", 10**6, forms)["cells"] if c["arm"] == "lora"]
    first = cells[0]["task"]
    for cell in cells:
        cell["factor_file_bytes"] = 100_000 if cell["task"] == first else 10_000
    kept = [c for c in cells if c["seed"] == 0 or c["task"] == first]
    assert arms_of({"cells": kept}, "main")["lora"].bytes == pytest.approx(19_000)


def test_a_training_that_broke_down_is_a_finding(forms):
    record = made_up("main", 10**6, forms)
    row = "| trainings with less than half of the accuracy on val200 that chose their rate | none |"
    assert row in study_tables.findings(record)
    broken = next(c for c in record["cells"] if (c["arm"], c["seed"]) == ("lora", 2))
    broken["accuracy"] = 5.94
    found = f"LoRA on {broken['task']}, seed 2: 5.9 %"
    assert row.replace("none", found) in study_tables.findings(record)


def test_ranks_are_of_each_task(forms):
    record = made_up("main", 10**6, forms)
    ranks = study_tables.mean_ranks(arms_of(record, "main"))
    assert [*ranks.values()] == list(range(1, len(ranks) + 1))


def test_the_front_has_what_nothing_cheaper_beats():
    points = {"a": (1, 5.0), "b": (2, 5.0), "c": (2, 7.0), "d": (3, 6.0), "e": (9, 9.0)}
    assert pareto(points) == ["a", "c", "e"]


def test_the_results_page_says_the_record(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = study_page.PAGE.read_text()
    assert page == with_tables(page, study_page.tables())


def leaders_record(forms):
    """A complete main part, and the leaders of it."""
    record = made_up("main", 10**6, forms)
    leaders = leaders_of(record)
    others = made_up("leaders", 10**6, planned("leaders", leaders))
    return {**record, "cells": record["cells"] + others["cells"]}, leaders


def test_leaders_are_the_best_on_validation_images(forms):
    record, leaders = leaders_record(forms)
    assert leaders == ["fact_tt", "lora", "fact_tk", "bitfit"]  # full and linear do not count
    for cell in record["cells"]:
        if (cell["arm"], cell["seed"]) == ("ssf", 0):
            cell["selection"] = {"learning_rate=0.01": 99.0}
    assert leaders_of(record) == ["fact_tt", "ssf", "lora", "fact_tk"]
    record["cells"] = [c for c in record["cells"] if c["arm"] != "dora"]
    assert leaders_of(record) == []  # it might be one


def test_leaders_are_only_asked_for_what_they_can_do(forms):
    configs = planned("leaders", ["fact_tt", "bitfit"])
    assert configs["pace"].methods == "fact_tt"  # BitFit has no increment for PACE's noise
    assert configs["bits1"].methods == "fact_tt,bitfit"
    assert configs["rounded4"].methods == configs["together"].methods == "fact_tt"
    assert planned("leaders") == {}


def test_leaders_are_compared_with_their_plain_training(forms):
    record, leaders = leaders_record(forms)
    rows = study_tables.leaders(record).splitlines()[2:]
    arms = {cell["arm"] for cell in record["cells"] if cell["part"] == "leaders"}
    assert len(rows) == len(arms)
    assert any(row.startswith("| LoRA, 1 bit | 5,000 |") for row in rows)
    assert "| leaders | " in study_tables.progress(record)


def test_what_is_made_of_trained_tasks_depends_on_them():
    item = Item("leaders", "ensemble", "lora", "digits", 0)
    made_of = sources(item, ["fact_tt", "lora"], study.SEEDS)
    assert [(i.part, i.method, i.seed) for i in made_of] == [
        ("main", "lora", seed) for seed in study.SEEDS
    ]
    together = sources(item._replace(form="together", seed=2), ["fact_tt", "lora"], study.SEEDS)
    assert [(i.method, i.seed) for i in together] == [("fact_tt", 2), ("lora", 2)]
    assert checksum(item, ["a", "b"]) != checksum(item, ["a", "c"])


def test_few_bits_take_the_rate_of_the_plain_training(tmp_path, monkeypatch, forms):
    path, runner = tmp_path / "study.json", FakeRunner()
    monkeypatch.setattr(Study, "runner", lambda self, form: runner)
    configs = {**forms, **planned("leaders", ["fact_tt"])}
    work = Study(path, tmp_path, "command", configs, ["fact_tt"])
    bits = Item("leaders", "bits4", "fact_tt", "digits", 0)
    assert work.run(bits) == ""  # the plain training comes first
    assert "90.0 %" in work.run(ITEM)
    assert "90.0 %" in work.run(bits)
    assert runner.ran == [(0, 3), (0, 1)]


def test_later_seeds_keep_every_choice_of_the_first(tmp_path, forms):
    """The rate of the main part, and what the form itself has chosen."""
    configs = {**forms, **planned("leaders", ["fact_tt"])}
    work = Study(tmp_path / "study.json", tmp_path, "command", configs, ["fact_tt"])
    first = Item("leaders", "pacegrid", "fact_tt", "digits", 0)
    with study_record.changed(tmp_path / "study.json") as record:
        study_record.add_result(record, ITEM, result(rate=0.03), "a")
        pace = {"consistency_weight": 0.1, "consistency_noise": 1.2}
        chosen = dataclasses.replace(result(rate=0.03), **pace)
        study_record.add_result(record, first, chosen, "b")
    assert work._chosen(ITEM, record) == {}
    assert work._chosen(first, record) == {"learning_rates": (0.03,)}
    later = work._chosen(first._replace(seed=1), record)
    assert later == {
        "learning_rates": (0.03,),
        "consistency_weights": (0.1,),
        "consistency_noises": (1.2,),
    }
    candidate, *others = cell_of(first._replace(seed=1), configs["pacegrid"], later).candidates
    assert (candidate, others) == (Candidate(1.0, 0.03, 1e-4, 0.1, 1.2), [])
    assert len(cell_of(first, configs["pacegrid"], work._chosen(first, record)).candidates) == 4
    with pytest.raises(LookupError):
        work._chosen(first._replace(task="fashion"), record)


def test_with_methods_the_leaders_together_are_still_all_of_them(tmp_path, monkeypatch, forms):
    record, leaders = leaders_record(forms)
    out = tmp_path / "study.json"
    study_record.write(out, {**record, "seconds": 0.0, "environments": [], "commands": []})
    asked = []
    monkeypatch.setattr(Study, "run", lambda self, item: asked.append((item, self.leaders)))
    changes = {**vars(NO_CHANGES), "methods": "fact_tt", "tasks": "digits", "out": out}
    args = argparse.Namespace(**changes, share="1/1", minutes=9.0, workdir=tmp_path)
    assert program.run_part("leaders", args, time.monotonic())
    assert {item.method for item, _ in asked} == {"fact_tt"}
    (together,) = (of for item, of in asked if (item.form, item.seed) == ("together", 0))
    assert together == leaders != ["fact_tt"]


def test_a_cell_in_another_way_takes_no_mean_with_older_seeds(tmp_path):
    record = study_record.read(tmp_path / "none.json")
    for seed in study.SEEDS:
        study_record.add_result(record, ITEM._replace(seed=seed), result(), f"old {seed}")
        study_record.add_result(record, ITEM._replace(task="emoji", seed=seed), result(), "old")
    left = lambda: [(c["task"], c["seed"], c["digest"]) for c in record["cells"]]  # noqa: E731
    emoji = [("emoji", seed, "old") for seed in study.SEEDS]
    study_record.add_result(record, ITEM._replace(seed=1), result(), "new 1")
    assert len(left()) == 6
    study_record.add_result(record, ITEM, result(), "new 0")
    assert left() == [("digits", 0, "new 0"), *emoji]
    study_record.add_failure(record, ITEM, ValueError("too hot"), "newer")
    assert left() == emoji


def test_what_is_made_of_trained_tasks_waits_for_them(tmp_path, monkeypatch, forms):
    path, runner = tmp_path / "study.json", FakeRunner()
    monkeypatch.setattr(Study, "runner", lambda self, form: runner)
    configs = {**forms, **planned("leaders", ["fact_tt"])}
    work = Study(path, tmp_path, "command", configs, ["fact_tt"])
    small = Item("leaders", "rounded8", "fact_tt", "digits", 0)
    assert work.todo(small) is None
    work.run(ITEM)
    (cell, made) = work.todo(small)
    assert cell is None
    runner.trainer.feed.data("digits").provenance["fingerprint"] = "other pictures"
    assert work.todo(small) is None
    work.run(ITEM)
    assert work.todo(small)[1] != made


# The tests


def arm_of(name, accuracy_of, seeds, form="main"):
    """An arm with ``accuracy_of(task, seed)``."""
    tasks = tuple(task_names(study.TASKS))
    cells = [
        {"task": t, "seed": s, "form": form, "accuracy": accuracy_of(tasks.index(t), s)}
        for t in tasks
        for s in seeds
    ]
    return Arm(name, tasks, tuple(cells))


def test_arms_are_compared_on_the_seeds_that_both_have():
    three = arm_of("a", lambda task, seed: 50.0 - 6 * seed + task, (0, 1, 2))
    one = arm_of("b", lambda task, seed: 49.0 + task, (0,))
    assert compared(three, one).difference == pytest.approx(1.0)
    assert compared(one, three).difference == pytest.approx(-1.0)
    assert compared(three, one).wins == 10
    assert compared(arm_of("c", lambda task, seed: 0.0, (1, 2)), one) is None
    of_all = arm_of("d", lambda task, seed: 46.0 + task, (0,), form="ensemble")
    assert compared(of_all, three).difference == pytest.approx(2.0)


def test_tasks_on_the_same_pictures_count_once():
    tasks = task_names(study.TASKS)
    assert [unit for unit in units_of(tasks) if len(unit) > 1] == [
        ["location", "orientation"],
        ["count", "distance"],
    ]
    better = arm_of("a", lambda task, seed: 51.0 + task / 7, (0,))
    pair = compared(better, arm_of("b", lambda task, seed: 50.0, (0,)))
    assert pair.p_tasks == pytest.approx(2 / 2**8)


def test_the_error_by_the_drawing_of_test_images():
    arm = arm_of("a", lambda task, seed: 50.0, (0,))
    for cell in arm.cells:
        cell["num_test"] = 2500  # 1 point for each task
    groups = (3, 2, 5)  # tasks
    assert arm.sampling_error == pytest.approx(math.sqrt(sum(1 / n for n in groups)) / 3)


# The leaderboard


def test_the_leaderboard_has_the_arms_with_all_tasks(forms, tmp_path):
    record = made_up("main", 10**6, forms)
    for number, cell in enumerate(record["cells"]):
        cell["factor_file_bytes"] = 50_000 - 1_000 * (number // 90)  # less for worse ones
    tasks = task_names(study.TASKS)
    without = {"main", "lora", tasks[0]}
    record["cells"] = [c for c in record["cells"] if not without <= {*map(str, c.values())}]
    board = entries(record)
    assert "lora" not in [entry.arm.name for entry in board]
    assert [e.accuracy.mean for e in board] == sorted(e.accuracy.mean for e in board)[::-1]
    front = [entry for entry in board if entry.front]
    assert len(leaderboard.short_table(record).splitlines()) <= 2 + leaderboard.SHORT
    assert steps(front, 2) == [front[0], front[-1]]
    gains = [a.accuracy.mean - b.accuracy.mean for a, b in itertools.pairwise(front[1:])]
    assert steps(front, 3)[1] == front[1 + gains.index(max(gains))]
    plot_leaderboard.draw(leaderboard.points(record), tmp_path / "board.png")
    assert (tmp_path / "board.png").stat().st_size > 10_000


def test_a_point_far_below_the_front_is_drawn_at_its_foot():
    best = plot_leaderboard.Point("fact_tt", "FacT-TT", 4e3, 70.0, 0.2, front=True)
    probe = best._replace(method="linear", accuracy=60.0, front=False)
    near = best._replace(title="VPT", accuracy=58.1, front=False)
    far = best._replace(title="MetaTT", accuracy=50.28, front=False)
    drawn = plot_leaderboard.at_the_foot([best, probe, near, far])
    assert drawn[:3] == [best, probe, near]
    assert drawn[3] == far._replace(title="MetaTT: 50.3", accuracy=58.0, error=None)


def test_ensembles_are_not_on_the_board(forms):
    record = made_up("main", 10**6, forms)
    assert "fact_tt" in [entry.arm.name for entry in entries(record)]
    for cell in record["cells"]:
        cell["form"] = "ensemble" if cell["arm"] == "fact_tt" else cell["form"]
    assert "fact_tt" not in [entry.arm.name for entry in entries(record)]


def test_an_empty_leaderboard_is_no_table(forms, tmp_path):
    record = made_up("main", 3, forms)
    assert leaderboard.short_table(record) == leaderboard.whole_table(record) == ""
    plot_leaderboard.draw(leaderboard.points(record), tmp_path / "board.png")
    assert (tmp_path / "board.png").stat().st_size > 1_000


def test_the_pages_have_the_leaderboard(monkeypatch):
    monkeypatch.chdir(ROOT)
    record = study_record.read(study_record.RECORD)
    tables = [leaderboard.short_table(record), leaderboard.whole_table(record)]
    for path, table in zip((leaderboard.README, leaderboard.PAGE), tables, strict=True):
        page = path.read_text()
        assert page == with_tables(page, {"leaderboard": table})


@pytest.mark.parametrize("share", ["3/2", "0/2", "x", "1"])
def test_a_share_that_is_none_is_refused(forms, share):
    with pytest.raises(SystemExit, match="expected one such as 1/2"):
        share_of(items("main", forms), share)


def test_a_method_that_the_part_does_not_have_is_named():
    args = argparse.Namespace(**{**vars(NO_CHANGES), "methods": "fact_ttt,lora"})
    with pytest.raises(SystemExit, match="--methods has fact_ttt; part main has adapter"):
        configs_of("main", (), args)


def test_the_lowest_rate_of_full_is_found_though_it_is_rounded_in_its_label():
    cell = {
        "task": "digits",
        "learning_rate": 0.1 * 0.003,
        "selection": {"learning_rate=0.0003": 9.0, "learning_rate=0.001": 8.0},
    }
    assert Arm("full", ("digits",), (cell,)).at_the_edge == {"lowest": 1, "highest": 0}


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(SystemExit, match="study.json is no record"):
        study_record.read(tmp_path / "study.json")
