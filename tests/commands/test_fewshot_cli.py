"""`python -m experiments.fewshot` as a user runs it: mock sets, and the views of a run."""

import io
import json
import re
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

from configs import fewshot, fewshot_tt
from fact_jax import UserError
from fact_jax.cli import fewshot as command
from fact_jax.cli.local import run_sweep
from fact_jax.data import TaskData
from fact_jax.data.shots import Shots
from fact_jax.sweep.feed import Feed
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Run
from fact_jax.training.mesh import make_mesh

CLASSES = {"food101": 101, "oxford_pets": 37}
MOCK = {"mock_data": True, "shots": (1,), "seeds": (0,), "epochs": 1, "warmup_epochs": 0}
MOCK |= {"train_limit": 16, "eval_limit": 24, "eval_batch_size": 24}


def results(workdir):
    return {p.stem: json.loads(p.read_text()) for p in Path(workdir, "results").glob("*.json")}


def rows_of(out, columns):
    """Cells of the printed table."""
    table = out[out.index("Top-1 accuracy") :]
    split = ([c.strip() for c in line.split("│")[1:-1]] for line in table.splitlines())
    return [cells for cells in split if len(cells) == columns]


def check_sets(names, out, workdir, augmented, width, factors):
    stored = results(workdir)
    assert set(stored) == {f"{name}_1shot-fact_tt-seed0" for name in names}
    rows = {cells[0]: cells for cells in reversed(rows_of(out, 6))}  # published ones come later
    for name in names:
        r = stored[f"{name}_1shot-fact_tt-seed0"]
        assert r["num_train"] == 16
        assert np.isfinite(r["losses"]).all()
        assert (r["num_head"], r["num_factors"]) == ((width + 1) * CLASSES[name], factors)
        assert (r["group"], r["data"]["mock"], r["data"]["shots"]) == ("fewshot", True, 1)
        assert (r["settings"]["resize"], r["settings"]["augment"]) == ("crop", augmented)
        assert r["settings"]["mixup"] == (0.8 if augmented else 0.0)
        assert rows[name][1:3] == ["fact_tt", f"{r['accuracy']:.1f}"]
        assert rows[name][3:] == [f"{factors:,}", f"{r['factor_file_bytes']:,}", "1"]
    if len(names) > 1:
        mean = np.mean([r["accuracy"] for r in stored.values()])
        assert float(rows["mean"][2]) == pytest.approx(mean, abs=0.051)
    with Image.open(workdir / "fewshot.png") as image:
        image.load()
        assert min(image.size) > 500
    assert (workdir / "fewshot.svg").read_text().startswith("<?xml")


def test_the_command_on_mock_data(tmp_path):
    settings = {**MOCK, "tasks": "oxford_pets", "variant": "vit_mini", "image_size": 32}
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    flags = ("--config", "configs/fewshot_tt.py", "--workdir", tmp_path, *overrides)
    out = run_command("experiments.fewshot", *flags)
    assert out.returncode == 0, out.stderr
    factors = 2 * 128 * 16 + 12 * 6 * 16**2
    check_sets(["oxford_pets"], out.stdout, tmp_path, True, 128, factors)
    assert "Shortened or mock data" in out.stdout


def test_two_sets_without_augmentation(tmp_path, tiny):
    """Without a process of its own."""
    config = fewshot.get_config("fact_tt,plain")
    config.update(tasks=",".join(CLASSES), batch_size=8, **MOCK, **tiny)
    console = Console(record=True, width=200, file=io.StringIO())
    command._finish(config, run_sweep(config, str(tmp_path), console), console, tmp_path)
    factors = 2 * 24 * 16 + 12 * 3 * 16**2
    check_sets(list(CLASSES), console.export_text(), tmp_path, False, 24, factors)


def test_nothing_is_drawn_without_a_few_shot_result(tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    command._finish(
        fewshot.get_config(), [Result("a", "fact_tt", "digits", 0, 80.0)], console, tmp_path
    )
    assert not console.export_text()
    assert not list(tmp_path.iterdir())


def runs_of(**changes):
    """The final runs of a few-shot sweep on digits, and what feeds them."""
    config = fewshot_tt.get_config()
    config.update(tasks="digits", variant="vit_mini", image_size=16, **changes)
    runs = [Run(cell, "final", cell.candidates[0]) for cell in make_plan(config)]
    return runs, Feed(read_settings(config))


def test_views_differ_by_epoch_and_seed_and_are_drawn_again_alike():
    (runs, feed), mesh = runs_of(shots=(1, 4), seeds=(0, 1)), make_mesh(64)
    assert [(run.cell.task, run.split) for run in runs] == [
        (f"digits_{k}shot", f"train-seed{seed}") for k in (1, 4) for seed in (0, 1)
    ]
    assert {(run.eval_split, run._replace(stage="supernet").eval_split) for run in runs} == {
        ("test", "val")
    }
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
    runs, feed = runs_of(shots=(1,), seeds=(0, 1))
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
    runs, feed = runs_of(shots=(1,), seeds=(0,))
    data, _ = feed.stack(runs, 1, make_mesh(64))
    with mock.patch.object(Shots, "records", side_effect=AssertionError):
        feed.views(runs, 0, data, make_mesh(64))


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


def test_a_config_without_few_shot_tasks_is_refused_before_it_runs(tmp_path):
    run = run_command("experiments.fewshot", "--config=quickstart", f"--workdir={tmp_path}")
    assert run.returncode == 2
    assert "No task of this config is a few-shot task (digits, fashion, location)" in run.stderr
    assert not list(tmp_path.iterdir())
    (advised,) = re.findall(r"(--config\.tasks=\S+),", run.stderr)
    again = ("--config=quickstart", advised, f"--workdir={tmp_path}", "--dry_run")
    assert run_command("experiments.fewshot", *again).returncode == 0
