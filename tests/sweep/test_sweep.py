"""The plan, the protocol's wiring, and the tables."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from told import Told

from configs import quickstart, tt_rank16
from fact_jax import UserError, get_variant
from fact_jax.sweep import feed as feed_module
from fact_jax.sweep import trainer as trainer_module
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.packing import step_bytes
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runner import Runner
from fact_jax.sweep.runs import Run
from fact_jax.sweep.store import Store, absolute
from fact_jax.training.mesh import make_mesh


def test_a_plan_is_tasks_times_methods_times_seeds_each_once():
    config = quickstart.get_config()
    config.seeds = (0, 1, 1)
    config.tasks = "digits,fashion,digits"
    names = [c.name for c in make_plan(config)]
    assert len(names) == len(set(names)) == 2 * 3 * 2
    assert len(make_plan(tt_rank16.get_config())) == 19


@pytest.fixture
def spied(monkeypatch, tmp_path):
    """A runner whose programs are replaced by spies; (runner factory, calls)."""
    calls = {"epochs": [], "evaluations": [], "reads": []}

    def epoch(step, base, states, trials, number, steps):
        data, hypers, seeds, *_ = trials
        calls["epochs"].append(
            (data.num_examples.tolist(), hypers, (seeds.tolist(), int(number)), int(steps))
        )
        return states, np.zeros((len(seeds), data.images.shape[1] // step.batch_size), np.float32)

    def measure(trainer, run, trainable, batches):
        findings, scale = (
            Findings(trainer.feed.task(run.cell.task).num_classes),
            run.candidate.scale,
        )
        examples = list(batches)
        images, labels = (np.concatenate(arrays) for arrays in zip(*examples, strict=True))
        right = np.arange(len(labels)) < int(len(labels) * (0.9 if scale == 1.0 else 0.5))
        predicted = np.where(right, labels, 1 - np.minimum(labels, 1))
        findings.add(images, labels, np.eye(findings.num_classes)[predicted])
        calls["evaluations"].append((findings.num_images, scale))
        return findings  # best for scale 1

    monkeypatch.setattr(trainer_module.TrainStep, "program", epoch)
    monkeypatch.setattr(trainer_module.Trainer, "measure", measure)
    opened = feed_module.open_task

    def open_task(task, settings):
        data = opened(task, settings)
        stream = data.stream  # load() reads through it, too
        calls["settings"] = settings

        def spy_stream(split, batch_size, limit=None):
            calls["reads"].append(split)
            return stream(split, batch_size, limit)

        data.stream = spy_stream
        return data

    monkeypatch.setattr(feed_module, "open_task", open_task)

    def make(**changes):
        config = quickstart.get_config()
        config.tasks, config.methods, config.epochs = "digits", "fact_tt", 3
        config.data_dir = str(tmp_path / "data")
        config.update(changes)
        cells = make_plan(config)
        return Runner(read_settings(config), Store(tmp_path / "work"), Told()), cells

    return make, calls


def run(runner, cells):
    """The results of all cells, run anew."""
    for cell in cells:
        runner.store.result_path(cell.name).unlink(missing_ok=True)
    return list(runner.run(cells, {}))


def test_val_protocol_trains_on_800_chooses_on_200_and_retrains_on_1000(spied):
    make, calls = spied
    runner, (cell,) = make(fact_tt=ConfigDict({"rank": 4, "scales": (0.1, 1.0, 10.0)}))
    (result,) = run(runner, [cell])
    assert [n for n, *_ in calls["epochs"]] == 3 * [[800]] * 3 + [[1000]] * 3
    assert [steps for *_, steps in calls["epochs"]] == 9 * [800 // 64] + 3 * [1000 // 64]
    assert calls["evaluations"] == [(200, pytest.approx(0.1)), (200, 1.0), (200, 10.0), (797, 1.0)]
    assert calls["reads"] == ["train800", *3 * ["val200"], "train800val200", "test"]
    assert result["scale"] == 1.0
    assert result["selection"] == {"scale=0.1": 50.0, "scale=1": 90.0, "scale=10": 50.0}
    assert result["accuracy"] == pytest.approx(100 * int(797 * 0.9) / 797)


def test_the_numbers_of_the_config_reach_the_program(spied, tmp_path):
    make, calls = spied
    runner, (cell,) = make(
        weight_decay=0.03,
        dropout_rate=0.2,
        drop_path_rate=0.3,
        seeds=(5,),
        jpeg_quality=75,
        data_cache=str(tmp_path / "cache"),
        epochs=4,
        warmup_epochs=2,
        fact_tt=ConfigDict({"rank": 4, "scale": 7.0, "learning_rate": 0.5}),
    )
    run(runner, [cell])
    assert calls["settings"].jpeg_quality == 75
    assert calls["settings"].cache_dir == str(tmp_path / "cache")
    for e, (_, hyper, key, _) in enumerate(calls["epochs"]):
        assert hyper.weight_decay.item() == pytest.approx(0.03)
        assert hyper.dropout_rate.item() == pytest.approx(0.2)
        assert hyper.drop_path_rate.item() == pytest.approx(0.3)
        assert hyper.scale.item() == 7.0
        assert key == ([5], e)
    rates = [h.learning_rate.item() for _, h, *_ in calls["epochs"]]
    # Warm-up one epoch late; then the cosine at t = 2 of 4, half way between 0.5 and 1e-5.
    assert rates == pytest.approx([1e-6, 1e-6, 1e-6 + (0.5 - 1e-6) / 2, (0.5 + 1e-5) / 2])


def test_removing_a_result_trains_the_new_settings_anew(spied):
    """The advice of the error holds: nothing of the old training is resumed."""
    make, calls = spied
    runner, (cell,) = make()
    run(runner, [cell])
    calls["epochs"].clear()
    other, (changed,) = make(fact_tt=ConfigDict({"rank": 4, "learning_rate": 0.1}))
    with pytest.raises(UserError, match="rank was 16, is now 4"):
        other.finished(changed)
    runner.store.result_path(cell.name).unlink()
    assert other.finished(changed) is None
    assert run(other, [changed])[0]["epochs_run"] == 3
    assert len(calls["epochs"]) == 3


def test_the_head_of_a_task_does_not_depend_on_the_others(spied):
    """The head is padded alike for one task and for all."""
    make, _ = spied
    alone, _ = make(tasks="digits")
    together, _ = make(tasks="digits,location")
    assert alone.trainer.padded_classes == together.trainer.padded_classes


def test_a_relative_workdir_will_do(spied, tmp_path, monkeypatch):
    make, _ = spied
    runner, (cell,) = make()
    monkeypatch.chdir(tmp_path)
    runner.store = Store("runs/here")
    run(runner, [cell])
    assert (tmp_path / "runs" / "here" / "results" / f"{cell.name}.json").exists()


def test_other_weights_are_other_settings(spied):
    make, _ = spied
    runner, (cell,) = make()
    run(runner, [cell])
    runner.trainer.weights_sha256 = "0" * 64
    with pytest.raises(UserError, match="weights_sha256"):
        runner.finished(cell)


def test_another_source_of_a_data_set_is_refused_and_the_same_is_not(spied):
    make, _ = spied
    runner, cells = make(tasks="digits_1shot,digits_4shot,fashion_1shot")
    before = runner.trainer.feed.data("digits_1shot").provenance
    stored = Result(cells[0].name, "fact_tt", "digits_1shot", 0, 80.0, data=before)
    results = {cells[0].name: stored}
    runner.check_sources(cells, results)
    results[cells[0].name] = dataclasses.replace(stored, data={**before, "builder": "folder"})
    with pytest.raises(UserError, match="digits_4shot.* would be read from"):
        runner.check_sources(cells, results)
    runner.check_sources([cells[2]], results)


def test_memory_is_asked_of_a_device_of_this_process(spied, monkeypatch):
    """Another process's device raises an error there."""
    make, _ = spied
    runner, cells = make()
    asked = []
    monkeypatch.setattr(
        trainer_module, "most_per_device", lambda *a, device, **k: asked.append(device) or 1
    )
    monkeypatch.setattr(trainer_module.jax, "local_devices", lambda: ["mine"])
    assert runner.trainer.group_size([0, 1], cells) == 1
    assert asked == ["mine"]


def test_prompts_and_long_lists_count_in_the_memory(spied, monkeypatch):
    make, _ = spied
    asked = []
    monkeypatch.setattr(trainer_module, "most_per_device", lambda *a, **k: asked.append(k) or 1)
    for tasks, methods in (("digits", "fact_tt"), ("digits", "vpt_deep"), ("digits_200shot", "")):
        runner, cells = make(
            tasks=tasks, methods=methods or "fact_tt", vpt_deep=ConfigDict({"num_tokens": 50})
        )
        runner.trainer.group_size([0, 1], cells)
    plain, prompted, listed = asked
    assert (plain["num_prompts"], prompted["num_prompts"]) == (0, 50)
    more_images = (2048 - 1000) * 32 * 32 * 3
    assert listed["state_bytes"] - plain["state_bytes"] == more_images
    vit = get_variant("vit_b16")  # a trial of 397 tokens needs more than twice that of 197
    assert step_bytes(vit, 64, 200) > 2 * step_bytes(vit, 64)


def test_memory_is_that_of_the_images_that_are_trained_on(spied, monkeypatch):
    """The weights may be of another size: DINOv2's are of 518 pixels."""
    make, _ = spied
    asked = []
    monkeypatch.setattr(trainer_module, "most_per_device", lambda *a, **k: asked.append(a[0]) or 1)
    runner, cells = make(image_size=48)
    runner.trainer.group_size([0, 1], cells)
    assert runner.trainer.model.config.image_size == 32
    assert [config.image_size for config in asked] == [48]


def test_a_search_by_a_measure_that_the_images_do_not_have_is_refused(spied, monkeypatch):
    make, _ = spied
    runner, (cell,) = make(select_by="auroc")
    trainer, run = runner.trainer, Run(cell, "search", cell.candidates[0])
    nothing = SimpleNamespace(score=lambda measure: math.nan)
    monkeypatch.setattr(trainer, "batches", lambda run: [])
    monkeypatch.setattr(trainer, "measure", lambda *a: nothing)
    fitness = trainer.fitness(SimpleNamespace(run=run, trainable={}))
    with pytest.raises(UserError, match="the validation images have no auroc"):
        fitness(())


def test_consistency_counts_in_the_memory(spied, monkeypatch):
    """Two passes of the batch with `full`, and every image's last logits with `fast`."""
    make, _ = spied
    asked = {}
    for form in ("", "full", "fast"):
        monkeypatch.setattr(
            trainer_module,
            "most_per_device",
            lambda _, batch, form=form, **k: asked.update({form: (batch, k["state_bytes"])}) or 1,
        )
        runner, cells = make(methods="fact_tt", consistency=form)
        runner.trainer.group_size([0, 1], cells)
    (batch, size), full, fast = asked[""], asked["full"], asked["fast"]
    assert full == (2 * batch, size)
    assert fast == (batch, size + 4 * 1000 * runner.trainer.padded_classes)


def test_a_limit_beyond_the_data_pads_no_further(spied):
    make, _ = spied
    sizes = {}
    for limit in (0, 300, 50_000):
        runner, (cell, *_) = make(train_limit=limit)
        sizes[limit] = runner.trainer.feed.capacity(cell)
    assert sizes == {0: 1000, 300: 300, 50_000: 1000}


def test_augmented_runs_keep_their_own_lists_only(spied):
    make, _ = spied
    runner, cells = make(tasks="digits_1shot,digits_2shot", seeds=(0, 1), augment=True)
    feed, mesh = runner.trainer.feed, make_mesh(64, num_trials=1)
    for cell in cells:
        feed.stack([Run(cell, "final", cell.candidates[0])], 1, mesh, runner.trainer.padded_classes)
        encoded = {(name, split) for name, data in feed._data.items() for split in data._encoded}
        assert encoded == {(cell.task, f"train-seed{cell.seed}")}


def test_a_work_directory_may_begin_at_home_or_be_a_bucket():
    assert str(absolute("~/x")).endswith("/x")
    assert "~" not in str(absolute("~/x"))
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run"
    with pytest.raises(UserError, match="--workdir memory://run: nothing is known of 'memory://'"):
        absolute("memory://run")
