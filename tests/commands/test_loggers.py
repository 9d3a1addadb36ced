"""Curves in Weights & Biases and MLflow, offline; TensorBoard's are in sweep/test_faults.py."""

import contextlib
import dataclasses
import time

import pytest
from etils import epath
from ml_collections import ConfigDict
from told import Told

from configs import quickstart
from fact_jax import UserError
from fact_jax.cli import loggers
from fact_jax.cli.loggers import Curves, MLflow, WandB
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runs import Run

NAN = float("nan")
LOSSES = [[1.0, 2.0], [0.5, 1.5]]
ACCURACIES = [[NAN, NAN], [50.0, 75.0]]


@pytest.fixture
def runs():
    """A candidate of one cell, and the final run of another: they train together."""
    config = quickstart.get_config()
    config.update(tasks="digits", methods="fact_tt", seeds=(0, 1))
    config.fact_tt = ConfigDict({"rank": 4, "scales": (0.1, 1.0)})
    one, other = make_plan(config)
    return [Run(one, "selection", one.candidates[1]), Run(other, "final", other.candidates[0])]


def train(logger, runs):
    listener = Told()
    curves = Curves([logger], listener)
    curves.start(runs, 2)
    for e in range(2):
        curves.epoch(e + 1, LOSSES[e], ACCURACIES[e])
    curves.close()


def test_mlflow_has_a_run_with_settings_and_curves_for_each_training(tmp_path, monkeypatch, runs):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    logger = MLflow(epath.Path(tmp_path))
    train(logger, runs)
    client = logger._client
    (experiment,) = [e for e in client.search_experiments() if e.name == "fact-jax"]
    stored = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    one, other = "digits-fact_tt-seed0", "digits-fact_tt-seed1"
    assert stored.keys() == {f"{one} selection scale=1", f"{other} final"}
    run = stored[f"{other} final"]
    assert (run.info.status, run.data.tags["cell"]) == ("FINISHED", other)
    assert (run.data.params["rank"], run.data.params["seed"]) == ("4", "1")
    curve = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in curve] == [(1, 2.0), (2, 1.5)]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "accuracy")] == [75.0]


def test_wandb_has_a_run_for_each_training_all_offline(tmp_path, monkeypatch, runs):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(WandB(epath.Path(tmp_path)), runs)
    one, other = b"digits-fact_tt-seed0 selection scale=1", b"digits-fact_tt-seed1 final"

    def stored():
        files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
        contents = [path.read_bytes() for path in files]
        curves = all(b"loss" in content and b"accuracy" in content for content in contents)
        names = [sum(name in content for content in contents) for name in (one, other)]
        return len(files), names, curves

    deadline = time.monotonic() + 60  # a process of its own writes the files
    while stored() != (2, [1, 1], True) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stored() == (2, [1, 1], True)


def test_a_store_that_mlflow_cannot_open_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(UserError, match="'mlflow' cannot begin with nothing://here"):
        MLflow(epath.Path(tmp_path))


def test_a_logger_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("fact_jax.extras.find_spec", lambda name: None)
    for name, logger in loggers.LOGGERS.items():
        with pytest.raises(UserError, match=rf"The logger '{name}' needs .*fact-jax\[{name}\]"):
            logger(epath.Path(tmp_path))


def test_loggers_are_named_once_and_tensorboard_has_a_setting_of_its_own():
    config = quickstart.get_config()
    config.loggers = "wandb, mlflow,wandb"
    assert read_settings(config).logger_names == ("wandb", "mlflow")
    config.tensorboard = True
    assert read_settings(config).logger_names == ("tensorboard", "wandb", "mlflow")


class Kept:
    """A logger that keeps what it is given."""

    remote = True

    def __init__(self):
        self.added, self.closed = [], []

    def open(self, training):
        return self

    def add(self, epoch, values):
        self.added.append((epoch, values))

    def close(self, finished):
        self.closed.append(finished)


class Broken(Kept):
    """A logger whose service goes away after the first epoch."""

    def add(self, epoch, values):
        if epoch > 1:
            raise ConnectionError("no route to host")
        super().add(epoch, values)


def test_a_service_that_goes_away_costs_its_curves_and_not_the_training(runs):
    broken, sound, listener = Broken(), Kept(), Told()
    curves = Curves([broken, sound], listener)
    curves.start(runs, 2)
    for e in range(2):
        curves.epoch(e + 1, LOSSES[e], ACCURACIES[e])
    curves.close()
    assert broken.added == [(1, {"loss": 1.0}), (1, {"loss": 2.0})]
    assert broken.closed == []
    assert sound.closed == [True, True]
    (note,) = listener.notes
    assert note == "Broken has no more of these curves (ConnectionError: no route to host)."


def test_a_training_that_is_stopped_is_not_said_to_be_finished(runs):
    logger = Kept()
    with contextlib.closing(Curves([logger], Told())) as curves:
        curves.start(runs, 3)
        curves.epoch(1, LOSSES[0], ACCURACIES[0])
    assert logger.closed == [False, False]


def test_candidates_curves_have_the_name_of_their_measure(runs):
    one, other = runs
    settings = dataclasses.replace(one.cell.settings, select_by="macro_f1")
    one = one._replace(cell=dataclasses.replace(one.cell, settings=settings))
    logger = Kept()
    curves = Curves([logger], Told())
    curves.start([one, other], 1)
    curves.epoch(1, [1.0, 2.0], [50.0, 75.0])
    first, second = (values for _, values in logger.added)
    assert first == {"loss": 1.0, "macro_f1": 50.0}
    assert second == {"loss": 2.0, "accuracy": 75.0}
