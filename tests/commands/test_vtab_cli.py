"""`python -m experiments.vtab` as a user runs it: mock data, the bundled ViT."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from places import ROOT
from report_results import rows_of as rows_of_results
from rich.console import Console
from run_command import run_command

import fact_jax
from configs import tt_paper, tt_rank16
from fact_jax.cli import vtab
from fact_jax.cli.local import run_sweep
from fact_jax.data import VTAB

SHORT = [
    *("--config.mock_data=True", "--config.variant=vit_mini", "--config.image_size=32"),
    *("--config.batch_size=8", "--config.eval_batch_size=16", "--config.epochs=3"),
    *("--config.eval_limit=24", "--config.train_limit=16", "--config.warmup_epochs=0"),
    *("--config.learning_rate=0.01", "--config.fact_tt.scales=(1.0,)"),
]


def command(workdir, *overrides):
    flags = ("--config", "configs/tt_rank16.py", "--workdir", str(workdir))
    return ["experiments.vtab", *flags, *overrides]


def run(*args):
    return run_command(*command(*args))


def results(workdir):
    return {p.stem: json.loads(p.read_text()) for p in sorted(Path(workdir, "results").iterdir())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A task of each group, through."""
    workdir = tmp_path_factory.mktemp("sweep")
    out = run(workdir, *SHORT, "--config.tasks=svhn,patch_camelyon,dsprites_loc")
    assert out.returncode == 0, out.stderr
    return workdir, out.stdout


def rows_of(out):
    table = out[out.index("Top-1 accuracy") :]
    rows = ([c.strip() for c in line.split("│")[1:-1]] for line in table.splitlines())
    return {cells[0]: cells[1:] for cells in rows if len(cells) == 4}


def test_the_tasks_run_and_the_table_has_them(finished):
    workdir, out = finished
    stored, rows = results(workdir), rows_of(out)
    assert {r["task"] for r in stored.values()} == {"svhn", "patch_camelyon", "dsprites_loc"}
    for r in stored.values():
        assert rows[r["task"]][0] == f"{r['accuracy']:.1f}"
    assert "Shortened or mock data" in out
    assert out.index("22,528") < out.index("[1/3]")  # 2 * 128 * 16 + 72 * 16^2 numbers


def test_the_table_of_all_19_has_the_means_beside_the_published_row(tmp_path):
    accuracies = {task: 50 + 2.5 * i for i, task in enumerate(VTAB)}
    stored = rows_of_results("fact_tt", {task: [a] for task, a in accuracies.items()})
    console = Console(record=True, width=200, file=io.StringIO())
    vtab._finish(tt_rank16.get_config(), stored, console, tmp_path)
    rows = rows_of(console.export_text())
    for task, accuracy in accuracies.items():
        assert rows[task][0] == f"{accuracy:.1f}"
    assert rows["cifar"][1:] == ["71.3", "73.69"]
    means = [float(rows[g][0]) for g in ("natural", "specialized", "structured")]
    assert float(rows["group mean"][0]) == pytest.approx(np.mean(means), abs=0.02)
    flat = np.mean(list(accuracies.values()))
    assert float(rows["mean of 19"][0]) == pytest.approx(flat, abs=0.02)
    assert rows["group mean"][1:] == ["75.34", "75.94"]


def test_results_and_factor_files_say_what_they_were_made_with(finished):
    workdir, _ = finished
    r = results(workdir)["svhn-fact_tt-seed42"]
    assert (r["num_factors"], r["num_head"]) == (22_528, 129 * 10)
    assert (r["num_train"], r["num_test"], len(r["losses"])) == (16, 24, 3)
    assert r["settings"]["epochs"] == 3
    assert r["data"]["mock"] is True
    assert r["environment"]["jax"] == jax.__version__
    assert json.loads((workdir / "config.json").read_text())["fact_tt"]["rank"] == 16
    task = fact_jax.load_factors(workdir / "factors" / "svhn-fact_tt-seed42.safetensors")
    shapes = {name: array.shape for name, array in task.factors.items()}
    assert shapes == {"U": (128, 16), "S": (6, 12, 16, 16), "V": (16, 128)}
    assert (task.method, task.num_classes) == (fact_jax.FacTTT(rank=16, scale=1.0), 10)
    assert task.metadata["variant"] == "vit_mini"


def test_run_again_it_skips_what_is_finished(finished):
    workdir, _ = finished
    before = {p: (p.stat().st_mtime_ns, p.read_text()) for p in workdir.glob("results/*")}
    out = run(workdir, *SHORT, "--config.tasks=svhn,patch_camelyon,dsprites_loc")
    assert out.stdout.count("finished before") == 3
    assert {p: (p.stat().st_mtime_ns, p.read_text()) for p in workdir.glob("results/*")} == before


def test_other_settings_in_the_same_workdir_are_refused(finished):
    workdir, _ = finished
    out = run(workdir, *SHORT, "--config.fact_tt.rank=8", "--config.tasks=svhn")
    assert out.returncode == 2
    assert "rank was 16, is now 8" in out.stderr


# A real task, which is read without TensorFlow. Each epoch is evaluated, and so has a checkpoint.
LONGER = [
    *(*SHORT, "--config.mock_data=False", "--config.tasks=digits", "--config.epochs=40"),
    *("--config.train_limit=48", "--config.protocol=paper", "--config.eval_every=1"),
]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    out = run(workdir, *LONGER)
    assert out.returncode == 0, out.stderr
    return results(workdir)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_killed_it_goes_on_from_its_last_checkpoint(never_stopped, tmp_path, how):
    """Killed in the middle of an epoch, the same command ends as if never stopped."""
    checkpoints = tmp_path / "stopped" / "checkpoints" / "digits-fact_tt-seed42"
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-m", *command(tmp_path / "stopped", *LONGER)],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:

        def epochs():
            steps = [int(p.name) for p in checkpoints.glob("final-*/*") if p.name.isdigit()]
            return max(steps, default=-1)

        deadline = time.time() + 300
        while epochs() < 2:
            assert process.poll() is None, process.stderr.read()
            assert time.time() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        message = process.stderr.read()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Run the same command again" in message
        assert "Traceback" not in message
    trained = epochs()
    assert 2 <= trained < 39
    resumed = run(tmp_path / "stopped", *LONGER)
    assert resumed.returncode == 0, resumed.stderr
    stopped = results(tmp_path / "stopped")
    for name, never in never_stopped.items():
        for key in ("accuracy", "losses", "num_test", "settings"):
            assert stopped[name][key] == never[key], (name, key)
    # Only what had no checkpoint was trained again.
    share = stopped["digits-fact_tt-seed42"]["epochs_run"]
    assert share == 40 - (trained + 1)


def test_paper_protocol_takes_the_best_of_the_test_evaluations(tiny, tmp_path):
    config = tt_paper.get_config()
    config.update(tasks="clevr_dist", mock_data=True, epochs=5, eval_every=2, warmup_epochs=0)
    config.update(batch_size=8, eval_batch_size=16, eval_limit=24, train_limit=16, **tiny)
    (r,) = run_sweep(config, str(tmp_path), Console(quiet=True))
    measured = {i: a for i, a in enumerate(r["test_accuracies"]) if a is not None}
    assert list(measured) == [1, 3, 4]
    assert r["accuracy"] == max(measured.values())
    assert r["settings"]["jpeg_quality"] == r["data"]["jpeg_quality"] == 75
    # The released settings: rank 4, scale 10.
    assert (r["num_factors"], r["scale"]) == (2 * 24 * 4 + 36 * 4**2, 10.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.tasks=dtb", ["'dtb'", "Did you mean 'dtd'", "svhn"]),
        ("--config.weights=/nonexistent.npz", ["/nonexistent.npz does not exist"]),
        ("--workdir=/dev/null/x", ["/dev/null/x", "cannot be written"]),
        ("stray", ["stray"]),
    ],
)
def test_mistakes_are_answered_in_a_paragraph(tmp_path, override, words):
    """test_settings.py has the mistakes of a config, test_commands.py those of flags."""
    out = run(tmp_path, *SHORT, override)
    assert out.returncode == 2
    message = out.stderr.strip().splitlines()[-1]
    assert [word for word in words if word not in message] == []
    assert "Traceback" not in out.stderr
    assert not list(tmp_path.glob("results/*.json"))
