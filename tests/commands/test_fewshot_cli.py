"""`python -m experiments.fewshot` as a user runs it: five mock sets, real small tasks, stops."""

import io
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image
from places import ROOT
from rich.console import Console
from run_command import run_command
from safetensors.numpy import load_file

from configs import compare, fewshot, fewshot_tt
from fact_jax import UserError
from fact_jax.cli import fewshot as command_module
from fact_jax.cli import local
from fact_jax.cli.local import run_sweep
from fact_jax.data import TaskData
from fact_jax.data.shots import Shots
from fact_jax.sweep.feed import Feed
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runs import Run
from fact_jax.training.mesh import make_mesh

SETS = {
    "food101": 101,
    "stanford_cars": 196,
    "oxford_flowers": 102,
    "fgvc_aircraft": 100,
    "oxford_pets": 37,
}
SHORT = [
    "--config.variant=vit_mini",
    "--config.image_size=32",
    "--config.seeds=(0,)",
    "--config.warmup_epochs=0",
    "--config.eval_limit=24",
    "--config.eval_batch_size=24",
]
MOCK = [*SHORT, "--config.mock_data=True", "--config.shots=(1,)", "--config.epochs=1"]


def results(workdir):
    return {p.stem: json.loads(p.read_text()) for p in Path(workdir, "results").glob("*.json")}


def rows_of(out, columns):
    """Cells of the printed table."""
    table = out[out.index("Top-1 accuracy") :]
    split = ([c.strip() for c in line.split("│")[1:-1]] for line in table.splitlines())
    return [cells for cells in split if len(cells) == columns]


def check_sets(names, out, workdir, augmented, limit, width, factors):
    stored = results(workdir)
    assert set(stored) == {f"{name}_1shot-fact_tt-seed0" for name in names}
    rows = {cells[0]: cells for cells in reversed(rows_of(out, 6))}  # published ones come later
    for name in names:
        r = stored[f"{name}_1shot-fact_tt-seed0"]
        assert r["num_train"] == min(SETS[name], limit)
        assert np.isfinite(r["losses"]).all()
        assert r["num_head"] == (width + 1) * SETS[name]
        assert r["num_factors"] == factors
        assert r["group"] == "fewshot"
        assert r["data"]["mock"]
        assert r["data"]["shots"] == 1
        assert r["settings"]["resize"] == "crop"
        assert r["settings"]["augment"] is augmented
        assert r["settings"]["mixup"] == (0.8 if augmented else 0.0)
        assert rows[name][1:3] == ["fact_tt", f"{r['accuracy']:.1f}"]
        assert rows[name][3:] == [f"{factors:,}", f"{r['factor_file_bytes']:,}", "1"]
    if len(names) > 1:
        mean = np.mean([r["accuracy"] for r in stored.values()])
        assert float(rows["mean"][2]) == pytest.approx(mean, abs=0.051)
    with Image.open(workdir / "fewshot.png") as image:
        image.load()
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 5
    assert (workdir / "fewshot.svg").read_text().startswith("<?xml")


def run(workdir, config, *overrides, timeout=600):
    arguments = ("--config", config, "--workdir", workdir, *overrides)
    return run_command("experiments.fewshot", *arguments, timeout=timeout)


def test_the_command_on_mock_data(tmp_path):
    names = ("oxford_pets",)
    changes = ("--config.tasks=oxford_pets", "--config.train_limit=16")
    out = run(tmp_path, "configs/fewshot_tt.py", *MOCK, *changes)
    assert out.returncode == 0, out.stderr
    check_sets(names, out.stdout, tmp_path, True, 16, 128, 2 * 128 * 16 + 12 * 6 * 16**2)
    assert "Shortened or mock data" in out.stdout


@pytest.mark.slow  # 80 cells and five searches, each set with its own head
def test_all_methods_through_all_five_sets_on_mock_data(tmp_path):
    """The command of docs/data.md."""
    out = run(
        tmp_path,
        "configs/fewshot.py:all",
        *MOCK,
        "--config.train_limit=16",
        "--config.noah.supernet_epochs=1",
        "--config.noah.generations=1",
        "--config.noah.population=4",
        timeout=1800,
    )
    assert out.returncode == 0, out.stderr
    stored = results(tmp_path)
    assert set(stored) == {f"{s}_1shot-{m}-seed0" for s in SETS for m in compare.SMALL}
    for r in stored.values():
        assert r["num_train"] == 16
        assert np.isfinite(r["losses"]).all()
        assert r["data"]["mock"]
        assert (r["search"] is not None) == (r["method"] == "noah")
        stem = f"{r['task']}-{r['method']}-seed0"
        assert (tmp_path / "factors" / f"{stem}.safetensors").exists()
    rows = [cells for cells in rows_of(out.stdout, 6) if cells[1] in compare.SMALL]
    assert len(rows) == 6 * len(compare.SMALL)  # five sets and their mean


def small(options, tiny, **changes):
    config = fewshot.get_config(options)
    config.update(
        seeds=(0,),
        warmup_epochs=0,
        eval_limit=24,
        eval_batch_size=24,
        batch_size=8,
        **tiny,
        **changes,
    )
    return config


MOCK_DATA = {"mock_data": True, "shots": (1,), "epochs": 1, "train_limit": 16}


def swept(config, workdir):
    """The text that the command prints of this sweep, without a process of its own."""
    console = Console(record=True, width=200, file=io.StringIO())
    command_module._finish(config, run_sweep(config, str(workdir), console), console, workdir)
    return console.export_text()


def test_two_sets_without_augmentation(tmp_path, tiny):
    names = ("food101", "oxford_pets")
    out = swept(small("fact_tt,plain", tiny, tasks=",".join(names), **MOCK_DATA), tmp_path)
    check_sets(names, out, tmp_path, False, 16, 24, 2 * 24 * 16 + 12 * 3 * 16**2)


class Stopped(BaseException):
    pass


class Stopping(local.Bars):
    """Stops after the second epoch."""

    def epoch(self, done, losses, accuracies):
        super().epoch(done, losses, accuracies)
        if done == 2:
            raise Stopped


def test_a_stopped_sweep_ends_as_if_never_stopped(tiny, tmp_path, monkeypatch):
    """Augmented views of an epoch are drawn from its number: those resumed are the same ones."""
    config = small("fact_tt", tiny, tasks="digits", shots=(4,), epochs=6, learning_rate=0.01)
    whole, again, name = tmp_path / "whole", tmp_path / "again", "digits_4shot-fact_tt-seed0"
    table = swept(config, whole)
    expected = results(whole)[name]
    ((_, _, accuracy, *_),) = (cells for cells in rows_of(table, 6) if cells[1] == "fact_tt")
    assert accuracy == f"{expected['accuracy']:.1f}"
    assert (expected["num_train"], expected["num_test"]) == (40, 24)
    assert expected["losses"][-1] < expected["losses"][0]
    with monkeypatch.context() as patch:
        patch.setattr(local, "Bars", Stopping)
        with pytest.raises(Stopped):
            swept(config, again)
    assert not (again / "fewshot.png").exists()
    swept(config, again)
    stopped = results(again)[name]
    assert stopped["epochs_run"] < 6
    for key in ("accuracy", "losses", "num_train", "settings"):
        assert stopped[key] == expected[key], key
    mine, theirs = (load_file(f / "factors" / f"{name}.safetensors") for f in (again, whole))
    for key, value in theirs.items():
        np.testing.assert_array_equal(mine[key], value)


def runs_of(config):
    return [Run(cell, "final", cell.candidates[0]) for cell in make_plan(config)]


def test_views_differ_by_epoch_and_seed_and_are_drawn_again_alike():
    config = fewshot_tt.get_config()
    config.update(tasks="digits", shots=(1, 4), seeds=(0, 1), variant="vit_mini", image_size=16)
    runs, mesh = runs_of(config), make_mesh(64)
    assert [(run.cell.task, run.split) for run in runs] == [
        (f"digits_{k}shot", f"train-seed{seed}") for k in (1, 4) for seed in (0, 1)
    ]
    assert {(run.eval_split, run._replace(stage="supernet").eval_split) for run in runs} == {
        ("test", "val")
    }
    feed = Feed(read_settings(config))
    data, numbers = feed.stack(runs, len(runs), mesh)
    assert numbers == [10, 10, 40, 40]
    first, second, again = (
        np.asarray(feed.views(runs, epoch, data, mesh).images) for epoch in (0, 1, 0)
    )
    assert first.shape == (4, 64, 16, 16, 3)
    np.testing.assert_array_equal(first, again)
    for t, number in enumerate(numbers):
        assert not first[t, number:].any()  # padding
        changed = (first[t, :number] != second[t, :number]).any(axis=(1, 2, 3))
        assert changed.mean() > 0.8
    np.testing.assert_array_equal(
        feed.views(runs[:1], 1, data, mesh).images[0, :10], second[0, :10]
    )


def test_two_seeds_see_the_same_list_differently():
    """NOAH's lists are its seed's; what a view depends on is the run's seed and the epoch."""
    config = fewshot_tt.get_config()
    config.update(tasks="digits", shots=(1,), seeds=(0, 1), variant="vit_mini", image_size=16)
    runs, feed = runs_of(config), Feed(read_settings(config))
    seeds, views = [], TaskData.views

    def spy(self, split, epoch_seed, limit=None):
        seeds.append(epoch_seed)
        return views(self, split, epoch_seed, limit)

    with mock.patch.object(TaskData, "views", spy):
        data, _ = feed.stack(runs, 2, make_mesh(64))
        for epoch in (0, 1):
            feed.views(runs, epoch, data, make_mesh(64))
    assert len(set(seeds)) == 4


def test_images_for_the_views_are_read_before_the_training():
    """While mock data are read, nobody else sees his files: Orbax's thread would not find its."""
    config = fewshot_tt.get_config()
    config.update(tasks="digits", shots=(1,), seeds=(0,), variant="vit_mini", image_size=16)
    runs, feed = runs_of(config), Feed(read_settings(config))
    data, _ = feed.stack(runs, 1, make_mesh(64))
    with mock.patch.object(Shots, "records", side_effect=AssertionError):
        feed.views(runs, 0, data, make_mesh(64))


def test_the_config_is_the_experiment_of_the_facts():
    config = fewshot_tt.get_config()
    expected = dict(
        shots=(1, 2, 4, 8, 16),
        seeds=(0, 1, 2),
        learning_rate=5e-3,
        weight_decay=1e-4,
        batch_size=64,
        epochs=100,
        warmup_epochs=None,
        resize="crop",
        augment=True,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        erasing=0.25,
        variant="vit_b16",
        methods="fact_tt",
    )
    assert {k: config[k] for k in expected} == expected
    assert config.fact_tt.rank == 16
    cells = make_plan(config)
    assert len(cells) == 5 * 5 * 3
    assert {cell.settings.warmup_epochs for cell in cells} == {10}  # None: a tenth
    assert {cell.task.rsplit("_", 1)[0] for cell in cells} == set(SETS)
    noah = fewshot.get_config("noah")
    (method,) = {cell.method for cell in make_plan(noah)}
    assert (method.widths, method.supernet_epochs) == ((5, 10, 50, 100), 300)
    plain = fewshot_tt.get_config("plain")
    assert not any(plain[k] for k in ("augment", "mixup", "cutmix", "label_smoothing", "erasing"))


def test_without_shots_the_tasks_name_theirs():
    config = fewshot_tt.get_config()
    config.update({"tasks": "digits_4shot", "shots": (), "seeds": (0,)})
    assert [cell.task for cell in make_plan(config)] == ["digits_4shot"]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
def test_what_the_config_does_not_set_can_still_be_given(monkeypatch):
    """All settings and grids of a method are there for the command line to change."""
    path, values = ROOT / "configs" / "fewshot.py", flags.FlagValues()
    overrides = ("--config.noah.population=7", "--config.noah.learning_rates=1e-3,5e-3")
    monkeypatch.setattr(sys, "argv", ["fewshot", f"--config={path}:noah", *overrides])
    config = config_flags.DEFINE_config_file("config", str(path), flag_values=values)
    values(sys.argv)
    cell = make_plan(config.value)[0]
    assert (cell.method.population, cell.method.limit) == (7, 640000)
    assert [c.learning_rate for c in cell.candidates] == [0.001, 0.005]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": "digits,foods101"}, "'foods101_1shot'.*Did you mean"),
        ({"shots": (0,)}, r"config.shots is \(0,\); expected whole numbers from 1 to 9999"),
        ({"shots": ()}, "digits is no few-shot task"),
        ({"tasks": "food101", "data_dir": "/nonexistent"}, "food101_1shot.*fact-jax data"),
    ],
)
def test_mistakes_are_answered_in_a_paragraph(tmp_path, tiny, changes, words):
    config = fewshot_tt.get_config()
    config.update({"tasks": "digits", "shots": (1,), "seeds": (0,), "epochs": 1, **tiny, **changes})
    with pytest.raises(UserError, match=f"(?s){words}"):
        run_sweep(config, str(tmp_path / "work"), Console(quiet=True))
