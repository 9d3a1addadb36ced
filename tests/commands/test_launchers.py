"""Cells that run elsewhere: on Ray, and as jobs of submitit's local executor."""

import gc
import json
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from places import ROOT
from report_results import result
from rich.console import Console
from safetensors.numpy import load_file
from told import Told

from configs import quickstart
from fact_jax import UserError
from fact_jax.cli.launchers import copies, on_slurm
from fact_jax.cli.launchers.copies import Copy, Follower
from fact_jax.cli.launchers.on_ray import OnRay
from fact_jax.cli.launchers.options import OPTIONS, chosen_options, launcher
from fact_jax.cli.live import Bars
from fact_jax.cli.local import run_sweep
from fact_jax.cli.process import rerun_command
from fact_jax.command_line import this_command
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import Store

DONE = ["digits-linear-seed0", "fashion-linear-seed0"]
FAILED = ["digits-bitfit-seed0", "fashion-bitfit-seed0"]


def small(**changes):
    config = quickstart.get_config()
    config.update(tasks="digits,fashion", methods="linear,bitfit", epochs=1, warmup_epochs=0)
    config.update(train_limit=32, eval_limit=32, batch_size=32, eval_batch_size=32)
    config.bitfit = ConfigDict({"learning_rate": 1e38, "weight_decay": 1e38})  # it diverges
    config.update(changes)
    return config


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Workers and jobs find the code where the command is run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def launched(name, config, workdir, failures=None, **settings):
    launch = launcher(name, ConfigDict(settings))
    return run_sweep(config, str(workdir), Console(quiet=True), failures, launch=launch)


def assert_equal_sweeps(one, other):
    results = sorted(path.name for path in (one / "results").glob("*.json"))
    assert results == sorted(path.name for path in (other / "results").glob("*.json"))
    for name in results:
        mine, theirs = (json.loads((d / "results" / name).read_text()) for d in (one, other))
        for key in mine.keys() - {"seconds", "environment", "epochs_run"}:
            assert mine[key] == theirs[key], (name, key)
        factors = Path(name).with_suffix(".safetensors")
        a, b = (load_file(d / "factors" / factors) for d in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


# ---- settings


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("local", {"jobs": 4}, "--launch.jobs is no setting of --launcher=local, but of slurm"),
        ("ray", {"partition": "gpu"}, "of slurm; ray has cpus, gpus, memory"),
        ("slurm", {"address": "auto"}, "of ray; slurm has"),
        ("ray", {"cpus": 0}, "--launch.cpus is 0; expected a whole number of 1 or more"),
        ("slurm", {"gpus": -1}, "--launch.gpus is -1; expected a whole number of 0 or more"),
        ("slurm", {"jobs": 0}, "--launch.jobs is 0; expected a whole number of 1 or more"),
        ("ray", {"memory": float("nan")}, "--launch.memory is nan; expected a finite number"),
    ],
)
def test_settings_that_do_not_belong_are_refused(name, given, words):
    with pytest.raises(UserError, match=words):
        chosen_options(name, ConfigDict(given))


def test_settings_have_defaults_and_all_are_documented():
    assert chosen_options("local", ConfigDict()).to_dict() == {}
    options = chosen_options("slurm", ConfigDict({"jobs": 3}))
    assert (options.jobs, options.wait) == (3, True)
    text = (ROOT / "docs/clusters.md").read_text()
    assert [name for name in OPTIONS if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:01", 31), ("4:00:00", 240), ("1-12", 2160), ("1-00:30", 1470), ("0:10", 1)],
)
def test_times_are_slurms(text, expected):
    assert on_slurm.minutes(text) == expected


def test_more_parameters_of_sbatch():
    parameters = on_slurm.parameters("qos=low nice=100 exclusive=True constraint='a100|h100'")
    assert parameters == {"qos": "low", "nice": 100, "exclusive": True, "constraint": "a100|h100"}
    for text in ("qos", "=low"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            on_slurm.parameters(text)
    with pytest.raises(UserError, match="'soon'; expected 240"):
        on_slurm.minutes("soon")


# ---- copies, and what is seen of them in the work directory


class Scripted:
    """A launcher without copies; each look at them plays the next scene."""

    def __init__(self, *scenes):
        self.scenes = list(scenes)

    def __call__(self, options, copy, bars):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def running(self):
        self.scenes.pop(0)()
        return bool(self.scenes)

    def ends(self):
        return "The last one was killed."


def failure(when):
    return {"message": "It broke.", "when": when}


def test_results_and_new_failures_are_seen_once_and_claims_count_as_running(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "DELAY", 0.0)
    cells = make_plan(small(seeds=(0, 1)))
    names, store, bars, stack = [c.name for c in cells], Store(tmp_path), Told(), ExitStack()
    first = result(cells[0].task, cells[0].method_name, cells[0].seed)

    def work():
        store.write_json(store.result_path(names[0]), first)
        store.write_json(store.failure_path(names[1]), failure("now"))
        stack.enter_context(store.claims.hold([names[2]]))

    store.write_json(store.failure_path(names[1]), failure("yesterday"))
    launch = Scripted(lambda: None, work, stack.close)
    follower, seen = Follower(launch, ConfigDict(), small(), store, bars), []
    text = f"{len(cells) - 2} cells are not finished.*works on them any more. The last one was kill"
    with pytest.raises(UserError, match=text):
        seen.extend(follower.run(cells, {}, []))
    done, failed = seen
    assert (done.cell, done.accuracy) == (first["cell"], first["accuracy"])
    assert isinstance(failed, Failure)
    assert (failed.cell, str(failed.error)) == (names[1], "It broke.")
    assert bars.copies == [(0, 0), (1, 2), (0, 2)]


def test_a_copy_that_is_started_again_tries_no_failed_cell_again(tmp_path, monkeypatch):
    store, asked = Store(tmp_path), []
    cells = {"a": None, "b": "yesterday", "c": None}

    def run(sweep, failures, only):
        assert sweep.failed_before == cells
        asked.append(only)

    monkeypatch.setattr(copies.Sweep, "run", run)
    copy = Copy(small(), str(tmp_path), cells, "x --cells=")
    with pytest.raises(UserError, match="is not the folder that the command writes to"):
        copy.run(Console(quiet=True))
    store.write_json(tmp_path / "config.json", {})
    store.write_json(store.failure_path("b"), failure("yesterday"))
    copy.run(Console(quiet=True))
    store.write_json(store.failure_path("c"), failure("now"))
    copy.run(Console(quiet=True))
    for name in "ab":
        store.write_json(store.failure_path(name), failure("now"))
    copy.run(Console(quiet=True))
    assert asked == [["a", "b", "c"], ["a", "b"]]


def test_a_failure_without_its_time_is_not_taken_for_a_new_one(tmp_path, monkeypatch):
    """Such records are of older versions, or written by hand."""
    monkeypatch.setattr(copies, "DELAY", 0.0)
    cells, store = make_plan(small()), Store(tmp_path)
    store.write_json(store.failure_path(cells[0].name), {"message": "It broke."})
    follower = Follower(Scripted(lambda: None), ConfigDict(), small(), store, Told())
    with pytest.raises(UserError, match=f"{len(cells)} cells are not finished"):
        list(follower.run(cells, {}, []))


# ---- Ray


def test_copies_that_ray_has_lost_are_told_of_and_others_go_on():
    class RayError(Exception):
        pass

    ended = ["lost", "well"]

    def wait(runs, timeout):
        run = ended.pop(0)
        return [run], [other for other in runs if other != run]

    def get(run):
        if run == "lost":
            raise RayError("The node was lost.\nMore of it.")

    errors = SimpleNamespace(RayError=RayError, RayTaskError=type("Task", (RayError,), {}))
    on = OnRay(ConfigDict(), Copy(small(), "", {}, ""), Told())
    on._ray = SimpleNamespace(wait=wait, get=get, exceptions=errors)
    on._runs = ["lost", "well", "third"]
    assert on.running()
    assert not on.running()  # one that ends well has seen the end of all cells
    assert on.ends() == "RayError: The node was lost."


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A sweep in this process, half of whose cells fail."""
    workdir, failures = tmp_path_factory.mktemp("local"), []
    results = run_sweep(small(), str(workdir), Console(quiet=True), failures)
    assert [result["cell"] for result in results] == DONE
    assert sorted(failure.cell for failure in failures) == FAILED
    return workdir


def assert_as_local(workdir, failures, local):
    assert sorted(failure.cell for failure in failures) == FAILED
    assert_equal_sweeps(local, workdir)
    record = json.loads((workdir / "failures" / f"{FAILED[0]}.json").read_text())
    assert record["error"] == "NonFiniteLoss"
    assert record["command"].endswith(f"--cells={FAILED[0]}")
    assert not list((workdir / "claims").iterdir())


@pytest.mark.slow  # Ray alone takes twenty seconds to begin and to end
def test_ray_ends_as_a_local_sweep_does_failures_included(tmp_path, local):
    pytest.importorskip("ray")
    failures = []
    results = launched("ray", small(), tmp_path, failures, cpus=1)
    assert [result["cell"] for result in results] == DONE
    assert_as_local(tmp_path, failures, local)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        path.name for path in (local / "checkpoints").iterdir()
    }


@pytest.mark.slow
def test_a_ray_node_is_lost_in_the_middle_of_a_cell(tmp_path):
    """The cell goes on elsewhere from its last epoch; no finished one runs again."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    epochs, config = 40, small(methods="linear", epochs=40, seeds=(0, 1), train_limit=512)
    config.update(protocol="paper", eval_every=1)  # each epoch has a checkpoint
    launched("local", config, tmp_path / "local")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 1 << 27},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=1 << 27) for _ in range(2)]
    lost = {}

    def lose_a_node():
        """Removes a node when both are in the middle of a cell."""
        workdir = tmp_path / "ray"
        while not lost:
            time.sleep(0.05)
            steps = {}
            for path in workdir.glob("checkpoints/*/final-*/[0-9]*"):
                if path.name.isdigit():
                    cell = path.parts[-3]
                    steps[cell] = max(int(path.name), steps.get(cell, 0))
            if len([s for s in steps.values() if 3 <= s < epochs // 2]) == 2:
                lost["times"] = {p: p.stat().st_mtime_ns for p in workdir.glob("results/*.json")}
                cluster.remove_node(nodes[1], allow_graceful=False)
                lost["steps"] = steps

    try:
        ray.init(address=cluster.address)
        thread = threading.Thread(target=lose_a_node, daemon=True)
        thread.start()
        launched("ray", config, tmp_path / "ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    thread.join(timeout=10)
    assert "steps" in lost
    assert_equal_sweeps(tmp_path / "local", tmp_path / "ray")
    for path, before in lost["times"].items():
        assert path.stat().st_mtime_ns == before
    stored = [json.loads(p.read_text()) for p in (tmp_path / "ray/results").glob("*.json")]
    resumed = [r for r in stored if r["epochs_run"] < epochs]
    assert len(resumed) == 1  # every other ran once, from its first epoch to its last
    assert resumed[0]["cell"] in lost["steps"]
    assert resumed[0]["epochs_run"] <= epochs - lost["steps"][resumed[0]["cell"]]


# ---- Slurm, through submitit


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit's
def test_two_jobs_share_a_sweep(tmp_path, local):
    pytest.importorskip("submitit")
    failures = []
    launched("slurm", small(), tmp_path, failures, cluster="local", jobs=2)
    await_jobs(tmp_path)
    assert_as_local(tmp_path, failures, local)
    assert len(submitted(tmp_path)) == 2
    # Where all is finished nothing is submitted.
    launched("slurm", small(methods="linear"), tmp_path, cluster="local", jobs=2)
    assert len(submitted(tmp_path)) == 2
    gc.collect()  # submitit's processes end without it


def await_jobs(workdir):
    """The command ends with the last outcome, and the job that wrote it a little later."""
    until = time.monotonic() + 60
    while len(list((workdir / "slurm").glob("*_result.pkl"))) < len(submitted(workdir)):
        assert time.monotonic() < until, "jobs still run"
        time.sleep(0.1)


def submitted(workdir):
    return [path.name.partition("_")[0] for path in (workdir / "slurm").glob("*_submitted.pkl")]


def test_the_same_command_follows_jobs_that_are_there(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    number, asked, cells = iter(range(9)), [], {cell.name: None for cell in make_plan(small())}

    def submit_array(self, jobs):
        asked.append(len(jobs))
        numbers = [str(next(number)) for _ in jobs]
        for name in numbers:
            (tmp_path / "slurm" / f"{name}_submitted.pkl").touch()
        return [submitit.LocalJob(self.folder, name) for name in numbers]

    monkeypatch.setattr(submitit.AutoExecutor, "submit_array", submit_array)
    monkeypatch.setattr(submitit.LocalJob, "done", lambda self, *_: self.job_id == "0")
    copy, bars = Copy(small(), str(tmp_path), cells, ""), Bars(Console(quiet=True))
    for wanted in (2, 2, 3):
        options = chosen_options("slurm", ConfigDict({"cluster": "local", "jobs": wanted}))
        with on_slurm.OnSlurm(options, copy, bars) as jobs:
            assert len(jobs._jobs) == wanted
    assert asked == [2, 1, 1]  # job 0 ended; then there is one more


@pytest.mark.parametrize(
    "flag",
    ["--cells=a", "--cells a", "-cells='a b'", "--distributed=h:1,2,0", "--distributed h:1,2,0"],
)
def test_the_command_that_runs_a_cell_again(monkeypatch, flag):
    words = ["x", "--config", "c.py", *shlex.split(flag), "--workdir", "my runs"]
    monkeypatch.setattr(sys, "argv", words)
    again = shlex.split(rerun_command("b"))
    start = len(this_command())  # `python -m MODULE` or `python FILE`, as these tests were started
    assert again[start:] == ["--config", "c.py", "--workdir", "my runs", "--cells=b"]


def test_what_keeps_jobs_from_running_is_said(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(copies, "DELAY", 0.5)
    with pytest.raises(UserError, match="nonsense.*does not exist") as caught:
        launched("slurm", small(weights="/nonsense.npz"), tmp_path, cluster="local")
    assert "4 cells are not finished" in str(caught.value)
    with pytest.raises(UserError, match="No job could be submitted.*Unknown argument 'qoss'"):
        launched("slurm", small(), tmp_path, cluster="local", parameters="qoss=low")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit's
def test_a_preempted_job_goes_on_from_its_last_epoch(tmp_path):
    pytest.importorskip("submitit")
    epochs, workdir = 40, tmp_path / "jobs"
    config = small(tasks="digits", methods="linear", epochs=epochs, train_limit=512)
    config.update(protocol="paper", eval_every=1)  # each epoch has a checkpoint
    launched("local", config, tmp_path / "local")
    told = []

    def preempt():
        while not told:
            time.sleep(0.05)
            steps = [int(p.name) for p in workdir.glob("checkpoints/*/*/*") if p.name.isdigit()]
            if max(steps, default=0) >= 3:
                (job,) = submitted(workdir)
                task = int(Path(f"/proc/{job}/task/{job}/children").read_text().split()[0])
                os.kill(task, signal.SIGUSR2)
                told.append(max(steps))

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    launched("slurm", config, workdir, cluster="local")
    await_jobs(workdir)
    assert told
    assert_equal_sweeps(tmp_path / "local", workdir)
    (stored,) = (json.loads(p.read_text()) for p in (workdir / "results").glob("*.json"))
    assert stored["epochs_run"] <= epochs - 1 - told[0]
    (log,) = (path.read_text() for path in (workdir / "slurm").glob("*_log.out"))
    assert log.count("Requeued job") == 1
    gc.collect()  # submitit's processes end without it
