"""Cells that run elsewhere: on Ray, and as jobs of submitit's local executor."""

import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from safetensors.numpy import load_file

from configs import quickstart
from fact_jax import UserError
from fact_jax.cli.launchers import on_slurm, watch
from fact_jax.cli.launchers.on_ray import OnRay, Survey
from fact_jax.cli.launchers.options import OPTIONS, chosen_options, launcher
from fact_jax.cli.launchers.watch import Watch
from fact_jax.cli.live import Bars
from fact_jax.cli.sweep import rerun_command, run_sweep
from fact_jax.command_line import this_command
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.runs import Failure
from fact_jax.sweep.store import Store
from tests.report_results import result

DONE = ["digits-linear-seed0", "fashion-linear-seed0"]
FAILED = ["digits-bitfit-seed0", "fashion-bitfit-seed0"]
ROOT = Path(__file__).parents[1]


def small(**changes):
    config = quickstart.get_config()
    config.update(
        tasks="digits,fashion", methods="linear,bitfit", epochs=1, train_limit=32, eval_limit=32,
        batch_size=32, eval_batch_size=32, warmup_epochs=0,
    )  # fmt: skip
    config.bitfit = ConfigDict({"learning_rate": 1e39})  # in float32 infinite: it diverges
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
    assert chosen_options("slurm", ConfigDict({"jobs": 3})).jobs == 3
    assert chosen_options("slurm", ConfigDict()).wait is True
    text = (ROOT / "docs/clusters.md").read_text()
    for name in OPTIONS:
        assert f"`{name}`" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:01", 31), ("4:00:00", 240), ("1-12", 2160), ("1-00:30", 1470), ("0:10", 1)],
)
def test_times_are_slurms(text, expected):
    assert on_slurm.minutes(text) == expected


def test_more_parameters_of_sbatch():
    assert on_slurm.parameters("qos=low nice=100 exclusive=True constraint='a100|h100'") == {
        "qos": "low", "nice": 100, "exclusive": True, "constraint": "a100|h100",
    }  # fmt: skip
    for text in ("qos", "=low"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            on_slurm.parameters(text)
    with pytest.raises(UserError, match="'soon'; expected 240"):
        on_slurm.minutes("soon")


# ---- what is seen in the work directory


def test_results_and_new_failures_are_seen_once_and_claims_count_as_running(tmp_path):
    cells = make_plan(small(seeds=(0, 1)))
    names, store, told = [cell.name for cell in cells], Store(tmp_path), []

    class Bars:
        def elsewhere(self, running, epochs):
            told.append((running, epochs))

    def failure(when):
        return {"message": "It broke.", "when": when}

    store.write_json(store.failure_path(names[1]), failure("yesterday"))
    seen = Watch(store, Bars(), cells)
    assert list(seen.look()) == []
    first = result(cells[0].task, cells[0].method_name, cells[0].seed)
    store.write_json(store.result_path(names[0]), first)
    store.write_json(store.failure_path(names[1]), failure("now"))
    with store.claims.hold([names[2]]):
        done, failed = seen.look()
    assert done == first
    assert isinstance(failed, Failure)
    assert (failed.cell, str(failed.error)) == (names[1], "It broke.")
    assert list(seen.look()) == []
    assert list(seen.left) == names[2:]
    assert told == [(0, 0), (1, 2), (0, 2)]


# ---- Ray


def test_what_a_cell_said_of_its_failure_stays_when_its_task_is_lost(tmp_path):
    cells, store = make_plan(small(tasks="digits", seeds=(0, 1))), Store(tmp_path)
    names = [cell.name for cell in cells]

    class Ray:
        def wait(self, tasks, timeout):
            return tasks, []

        def get(self, task):
            store.write_json(store.failure_path(names[0]), {"message": "It broke.", "when": "now"})
            raise RuntimeError("The node was lost.")

        class exceptions:  # noqa: N801
            class RayTaskError(Exception):
                pass

        def cancel(self, task):
            raise AssertionError

    class Bars:
        def elsewhere(self, running, epochs):
            pass

    on = OnRay.__new__(OnRay)
    on._ray, on._store, on._bars = Ray(), store, Bars()
    on._survey = Survey(set(), [names], "")
    on._work = SimpleNamespace(command="python -m experiments.vtab --cells=")
    on._task = lambda *about: "task"
    failures = {failure.cell: str(failure.error) for failure in on.run(cells, {}, [])}
    assert failures == {names[0]: "It broke.", **dict.fromkeys(names[1:], "The node was lost.")}


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


def test_ray_ends_as_a_local_sweep_does_failures_included(tmp_path, local):
    pytest.importorskip("ray")
    failures = []
    results = launched("ray", small(), tmp_path, failures, cpus=1)
    assert [result["cell"] for result in results] == DONE
    assert_as_local(tmp_path, failures, local)
    assert not list(tmp_path.glob(".launch-*"))


@pytest.mark.slow
def test_a_ray_node_is_lost_in_the_middle_of_a_cell(tmp_path):
    """The cell goes on elsewhere from its last epoch; no finished one runs again."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    epochs, config = 40, small(methods="linear", epochs=40, seeds=(0, 1), train_limit=512)
    launched("local", config, tmp_path / "local")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 1 << 27},
    )
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=1 << 27) for _ in range(2)]
    lost = {}

    def lose_a_node():
        """When both nodes are in the middle of a cell."""
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


def test_two_jobs_share_a_sweep(tmp_path, local):
    pytest.importorskip("submitit")
    failures = []
    launched("slurm", small(), tmp_path, failures, cluster="local", jobs=2)
    assert_as_local(tmp_path, failures, local)
    submitted = (tmp_path / "slurm/jobs.json").read_text()  # one may be ending still
    assert len(json.loads(submitted)["jobs"]) == 2
    # Where all is finished nothing is submitted.
    launched("slurm", small(methods="linear"), tmp_path, cluster="local", jobs=2)
    assert (tmp_path / "slurm/jobs.json").read_text() == submitted


def test_the_same_command_follows_jobs_that_are_there(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    number, submitted = iter(range(9)), []

    def submit_array(self, jobs):
        submitted.append(len(jobs))
        return [submitit.LocalJob(self.folder, str(next(number))) for _ in jobs]

    monkeypatch.setattr(submitit.AutoExecutor, "submit_array", submit_array)
    monkeypatch.setattr(submitit.LocalJob, "done", lambda self, *_: self.job_id == "0")
    for wanted in (2, 2, 3):
        config = small()
        with launcher("slurm", ConfigDict({"cluster": "local"}))(
            config, Store(tmp_path), Bars(Console(quiet=True)), []
        ) as runner:
            assert len(runner._jobs(wanted)) == wanted
    assert submitted == [2, 1, 1]  # job 0 ended; then there is one more


@pytest.mark.parametrize("flag", ["--cells=a", "--cells a", "-cells='a b'", "--distributed=h:1,2,0",
                                  "--distributed h:1,2,0"])  # fmt: skip
def test_the_command_that_runs_a_cell_again(monkeypatch, flag):
    words = ["x", "--config", "c.py", *shlex.split(flag), "--workdir", "my runs"]
    monkeypatch.setattr(sys, "argv", words)
    again = shlex.split(rerun_command("b"))
    start = len(this_command())  # `python -m MODULE` or `python FILE`, as these tests were started
    assert again[start:] == ["--config", "c.py", "--workdir", "my runs", "--cells=b"]


def test_what_keeps_jobs_from_running_is_said(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(watch, "DELAY", 0.5)
    with pytest.raises(UserError, match="nonsense.*does not exist") as caught:
        launched("slurm", small(weights="/nonsense.npz"), tmp_path, cluster="local")
    assert "4 cells are not finished" in str(caught.value)
    with pytest.raises(UserError, match="No job could be submitted.*Unknown argument 'qoss'"):
        launched("slurm", small(), tmp_path, cluster="local", parameters="qoss=low")


@pytest.mark.slow
def test_a_preempted_job_goes_on_from_its_last_epoch(tmp_path):
    pytest.importorskip("submitit")
    epochs, config, workdir = (
        40,
        small(tasks="digits", methods="linear", epochs=40, train_limit=512),
        tmp_path / "jobs",
    )
    launched("local", config, tmp_path / "local")
    told = []

    def preempt():
        while not told:
            time.sleep(0.05)
            steps = [int(p.name) for p in workdir.glob("checkpoints/*/*/*") if p.name.isdigit()]
            if max(steps, default=0) >= 3:
                (job,) = json.loads((workdir / "slurm/jobs.json").read_text())["jobs"]
                task = int(Path(f"/proc/{job}/task/{job}/children").read_text().split()[0])
                os.kill(task, signal.SIGUSR2)
                told.append(max(steps))

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    launched("slurm", config, workdir, cluster="local")
    assert told
    assert_equal_sweeps(tmp_path / "local", workdir)
    (stored,) = (json.loads(p.read_text()) for p in (workdir / "results").glob("*.json"))
    assert stored["epochs_run"] <= epochs - 1 - told[0]
    (log,) = (path.read_text() for path in (workdir / "slurm").glob("*_log.out"))
    assert log.count("Requeued job") == 1
