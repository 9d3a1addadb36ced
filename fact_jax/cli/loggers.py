"""Curves of every training for the programs that people watch them in.

A logger is a class that opens one `Curve` for each training. To add one, write such a class, and
add it to `LOGGERS`, its name to `LOGGER_NAMES` of `sweep/settings.py`, and its packages to the
extras of pyproject.toml.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etils import epath

from fact_jax.errors import UserError
from fact_jax.extras import require
from fact_jax.sweep.runs import Progress, Run

PROJECT = "fact-jax"  # the project, or experiment, that runs are listed under


class Training(NamedTuple):
    """A training that has curves.

    Attributes:
      cell: the name of its cell.
      name: what it is in its cell, such as "final" or "selection scale=0.1".
      settings: all settings that it depends on, JSON-able.
    """

    cell: str
    name: str
    settings: Mapping[str, Any]


@runtime_checkable
class Curve(Protocol):
    """The destination of the numbers of one training."""

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of an epoch, counted from 1."""

    def close(self, finished: bool) -> None:
        """Ends the curve; `finished` says whether all epochs were trained."""


@runtime_checkable
class Logger(Protocol):
    """A program that shows curves.

    Attributes:
      remote: whether it may be out of reach. Its faults then end its curve and not the training.
    """

    remote: bool

    def open(self, training: Training) -> Curve:
        """Begins the curve of a training."""


class TensorBoard:
    """Files for TensorBoard, in DIR/tensorboard/<cell>/<training>.

    A training that goes on reports its earlier epochs again, and its file is written anew: a stop
    leaves neither gaps nor epochs that are there twice. tensorboardX's SummaryWriter is not used:
    its thread dies of a full disk, and whoever waits for it waits forever.
    """

    remote = False

    def __init__(self, workdir: epath.Path):
        require("The logger 'tensorboard'", "tensorboard", "tensorboardX")
        self._folder = workdir / "tensorboard"

    def open(self, training: Training) -> Curve:
        folder = self._folder / training.cell / training.name
        folder.rmtree(missing_ok=True)
        folder.mkdir(parents=True)
        return _EventFile(folder / "events")


class _EventFile:
    def __init__(self, path: epath.Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._writer = EventsWriter(os.fspath(path))
        # A TensorBoard that has read the old file forgets it.
        self._writer.write_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for what, value in values.items():
            event = Event(step=epoch, wall_time=time.time(), summary=scalar(what, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        with contextlib.suppress(OSError):  # all is flushed
            self._writer.close()


class WandB:
    """Runs of Weights & Biases: one for each training, in a group for each cell.

    The service is chosen by W&B's own variables; with WANDB_MODE=offline all stays in DIR/wandb. A
    training that goes on after a stop is a new run, which has all epochs; the old one has failed.
    """

    remote = True

    def __init__(self, workdir: epath.Path):
        require("The logger 'wandb'", "wandb", "wandb")
        self._folder = os.fspath(workdir)

    def open(self, training: Training) -> Curve:
        import wandb

        return _WandBRun(
            wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                group=training.cell,
                name=f"{training.cell} {training.name}",
                job_type=training.name.partition(" ")[0],
                dir=self._folder,
                config=dict(training.settings),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        )


class _WandBRun:
    def __init__(self, run: Any):
        self._run = run

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=epoch)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """Runs of MLflow: one for each training, with its cell as a tag.

    They go to MLFLOW_TRACKING_URI, or to the database DIR/mlflow.db. A training that goes on after
    a stop is a new run, which has all epochs; the old one is killed.
    """

    remote = True

    def __init__(self, workdir: epath.Path):
        require("The logger 'mlflow'", "mlflow", "mlflow")
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir / 'mlflow.db'}"
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(name)
            number = found.experiment_id if found else self._client.create_experiment(name)
        except Exception as error:  # of its stores and of its HTTP client
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"The logger 'mlflow' cannot begin with {uri} ({what}). Set MLFLOW_TRACKING_URI to "
                "a server that answers, or pip install 'fact-jax[mlflow]' for a database file."
            ) from error
        self._experiment = number

    def open(self, training: Training) -> Curve:
        name, tags = f"{training.cell} {training.name}", {"cell": training.cell}
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        for setting, value in training.settings.items():
            self._client.log_param(run.info.run_id, setting, value)
        return _MLflowRun(self._client, run.info.run_id)


class _MLflowRun:
    def __init__(self, client: Any, run_id: str):
        self._client, self._run_id = client, run_id

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        for what, value in values.items():
            self._client.log_metric(self._run_id, what, value, step=epoch)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")


LOGGERS: dict[str, Callable[[epath.Path], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""By name; each is made for a work directory."""


class Curves:
    """Gives loss and accuracy of every training to loggers, and all that it hears to a listener.

    A remote logger that fails loses the curves of the trainings under way, with one note.
    """

    def __init__(self, loggers: list[Logger], listener: Progress):
        self._loggers, self._listener = loggers, listener
        self._curves: list[tuple[Logger, list[Curve]]] = []  # of the trainings under way
        self._names: list[str] = []  # of what is measured
        self._epochs = self._done = 0

    def start(self, runs: list[Run], epochs: int) -> None:
        self._listener.start(runs, epochs)
        self.close()
        self._epochs, self._done = epochs, 0
        self._names = [_measure(run) for run in runs]
        trainings = [_training(run) for run in runs]
        for logger in self._loggers:
            with self._keeping(logger, []) as curves:
                curves.extend(map(logger.open, trainings))

    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None:
        self._done = done
        under_way, self._curves = self._curves, []
        for logger, curves in under_way:
            with self._keeping(logger, curves):
                values = zip(curves, self._names, losses, accuracies, strict=False)
                for curve, name, loss, accuracy in values:
                    named = {"loss": loss, name: accuracy}
                    curve.add(done, {k: v for k, v in named.items() if not math.isnan(v)})
        self._listener.epoch(done, losses, accuracies)

    def close(self) -> None:
        under_way, self._curves = self._curves, []
        for logger, curves in under_way:
            with self._keeping(logger, curves):
                for curve in curves:
                    curve.close(self._done == self._epochs)
        self._curves = []

    @contextlib.contextmanager
    def _keeping(self, logger: Logger, curves: list[Curve]) -> Iterator[list[Curve]]:
        """Keeps the logger's curves, unless it is a remote one and what is done fails."""
        try:
            yield curves
        except Exception as error:
            if not logger.remote:
                self._curves.append((logger, curves))
                raise
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.note(f"{type(logger).__name__} has no more of these curves ({what}).")
        else:
            self._curves.append((logger, curves))

    def note(self, text: str) -> None:
        self._listener.note(text)

    def waiting(self) -> None:
        self._listener.waiting()


def _measure(run: Run) -> str:
    """The name of what a run's evaluations measure."""
    chosen = run.cell.settings.select_by if run.stage == "selection" else ""
    return chosen or "accuracy"


def _training(run: Run) -> Training:
    label = run.cell.label(run.candidate) if run.stage == "selection" else ""
    name = f"{run.stage} {label}".strip().replace(", ", ",")
    settings = {**run.cell.as_stored, **run.candidate._asdict()}
    return Training(run.cell.name, name, settings)
