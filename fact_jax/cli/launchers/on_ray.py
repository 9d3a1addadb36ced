"""Cells as tasks on a Ray cluster: one task for each group that trains together.

A first task says what is done and which cells train together, since that depends on the workers'
devices. Ray runs a task again whose worker or node was lost; a cell that fails is a result, and its
task ends well. A process that had accelerators ends with its task, because it would not give them
back; one on CPUs keeps model, data and compiled programs for the next.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import pickle
import socket
import uuid
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fact_jax.cli import process, stopping
from fact_jax.cli.launchers.watch import Watch
from fact_jax.cli.live import Bars, Scalars, Several
from fact_jax.cli.sweep import LocalRunner, rerun_command
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.sweep.plan import Cell, make_plan
from fact_jax.sweep.record import store_failure
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runner import POLL, Outcome
from fact_jax.sweep.runs import Failure, Progress, Run
from fact_jax.sweep.store import Store, absolute
from fact_jax.text import say

OBJECT_STORE = 100 << 20  # bytes, of a cluster that is started here: only names are passed


class Work(NamedTuple):
    """What a task needs to know."""

    config: bytes
    workdir: str
    marker: str  # a file there, by which a worker knows that it is the same folder
    command: str  # that runs a cell again, without the cell's name
    device: str
    columns: int


class Survey(NamedTuple):
    """What the first task finds."""

    finished: set[str]
    groups: list[list[str]]
    text: str


class OnRay:
    """Runs cells on the cluster of ``--launch.address``, or on one that is started here."""

    def __init__(
        self, options: ConfigDict, config: ConfigDict, store: Store, bars: Bars, only: list[str]
    ):
        self._options, self._store, self._bars, self._only = options, store, bars, only
        self._work = Work(
            pickle.dumps(config),
            str(store.workdir),
            f".launch-{uuid.uuid4().hex[:8]}",
            rerun_command("CELL").removesuffix("CELL"),
            "gpu" if options.gpus else "tpu" if options.tpus else "cpu",
            bars.width,
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> OnRay:
        try:
            import ray
        except ImportError as error:
            raise UserError('--launcher=ray needs Ray: pip install "fact-jax[ray]".') from error

        self._ray = ray
        with self._stack:
            self._connect()
            marker = self._store.workdir / self._work.marker
            self._store.write(marker, b"")
            self._stack.callback(marker.unlink, missing_ok=True)
            self._bars.note("Waiting for a first task's word on devices, data and results ...")
            self._survey = self._get(self._task(survey, "survey", self._only))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        if cell.name not in self._survey.finished:
            return None
        return self._store.read_record(cell.name, complete=True)

    def check_data(self, cells: list[Cell], results: dict[str, dict[str, Any]]) -> None:
        """The survey did, where the data are."""

    def describe(self, console: Console, cells: list[Cell]) -> None:
        console.print(self._survey.text, highlight=False)

    def run(
        self, cells: list[Cell], results: dict[str, dict[str, Any]], only: list[str]
    ) -> Iterator[Outcome]:
        """What comes of the cells without a result, as soon as it is in the work directory."""
        todo = [c for c in cells if c.name not in results and (not only or c.name in only)]
        watch, names = Watch(self._store, self._bars, todo), {c.name for c in todo}
        left = [[name for name in group if name in names] for group in self._survey.groups]
        tasks = {self._task(run_group, group[0], group): group for group in left if group}
        try:
            while tasks:
                ready, _ = self._ray.wait(list(tasks), timeout=POLL)
                stopping.check_signals()
                for task in ready:
                    yield from self._end(task, watch, tasks.pop(task))
                yield from watch.look()
        finally:
            for task in tasks:
                self._ray.cancel(task)
        yield from watch.last_looks()
        for cell in watch.left.values():
            yield self._lost(cell, UserError("Its task ended, but there is no result."))

    def _end(self, task: Any, watch: Watch, names: list[str]) -> Iterator[Outcome]:
        """UserError if nothing can run; else a failure's record where a task could not end."""
        try:
            self._get(task)
        except UserError:
            raise
        except Exception as error:
            yield from watch.look()  # what its cells have said goes before what Ray says
            for cell in [watch.left[name] for name in names if name in watch.left]:
                if not self._store.result_path(cell.name).exists():
                    self._lost(cell, error)

    def _lost(self, cell: Cell, error: Exception) -> Failure:
        failure = Failure(cell.name, error)
        store_failure(self._store, cell, failure, self._work.command + cell.name)
        return failure

    def _get(self, task: Any) -> Any:
        try:
            while not self._ray.wait([task], timeout=POLL)[0]:
                stopping.check_signals()
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _task(self, function: Any, name: str, names: list[str]) -> Any:
        o = self._options
        settings = {
            "num_cpus": o.cpus,
            "num_gpus": o.gpus or None,
            "resources": {"TPU": o.tpus} if o.tpus else None,
            "memory": int(o.memory * 1e9) if o.memory else None,
            "max_retries": o.retries,
            "max_calls": 1 if o.gpus or o.tpus else None,
            "scheduling_strategy": "SPREAD",
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return self._ray.remote(**given)(function).options(name=name).remote(self._work, names)

    def _connect(self) -> None:
        ray, o = self._ray, self._options
        if not ray.is_initialized():
            here = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
            try:
                with warnings.catch_warnings():  # what Ray forks becomes another program at once
                    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                    ray.init(
                        o.address or "local",
                        logging_level=logging.ERROR,
                        **({} if o.address else here),
                    )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"No Ray cluster answers at --launch.address={o.address}: "
                    f"{' '.join(str(error).split())}"
                ) from error
            self._stack.callback(ray.shutdown)
            stopping.end_gently()  # Ray has its own idea of SIGTERM
        wanted = {"CPU": o.cpus or 1, "GPU": o.gpus, "TPU": o.tpus, "memory": (o.memory or 0) * 1e9}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
            text = ", ".join(f"{k} {v:g}" for k, v in wanted.items() if v)
            if not o.address:
                raise UserError(
                    f"This machine has not what a task shall have ({text}); Ray sees "
                    + ", ".join(f"{k} {nodes[0].get(k, 0):g}" for k in wanted)
                    + ". Lower --launch.cpus, gpus, tpus or memory."
                )
            self._bars.note(f"No node of the cluster has {text}: waiting for one.")
        for kind in ("GPU", "TPU"):
            there = sum(node.get(kind, 0) for node in nodes)
            if there and not (o.gpus or o.tpus):
                self._bars.note(
                    f"The cluster has {there:g} {kind}s that no task asks for: "
                    f"--launch.{kind.lower()}s=1 gives each one."
                )


def survey(work: Work, only: list[str]) -> Survey:
    """In a worker: which cells are finished, which train together, and what there is."""
    with _named():
        runner, _ = _runner(work)
        cells = make_plan(pickle.loads(work.config))
        finished = {c.name: r for c in cells if (r := runner.finished(c)) is not None}
        todo = [c for c in cells if c.name not in finished and (not only or c.name in only)]
        runner.check_data(todo, finished)
        text = io.StringIO()
        runner.describe(Console(file=text, width=work.columns), cells)
        groups = [[cell.name for cell in group.cells] for group in runner.groups(cells)]
        return Survey(set(finished), groups, text.getvalue().rstrip())


def run_group(work: Work, names: list[str]) -> None:
    """In a worker: runs these cells. What comes of them is in the work directory."""
    with _named():
        runner, scalars = _runner(work)
        cells, results = make_plan(pickle.loads(work.config)), {}
        for cell in cells:  # another attempt may have finished some
            if cell.name in names and (result := runner.finished(cell)) is not None:
                results[cell.name] = result
        try:
            for _ in runner.run(cells, results, names):
                pass
        finally:
            if scalars:
                scalars.close()


@functools.lru_cache(maxsize=1)
def _runner(work: Work) -> tuple[LocalRunner, Scalars | None]:
    """Kept while the worker's process lives."""
    process.prepare_process()
    if not (absolute(work.workdir) / work.marker).exists():
        raise UserError(
            f"{work.workdir} is not the folder that the command writes to: --workdir must be a "
            "bucket, or a folder that all nodes share."
        )
    if work.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if jax.default_backend() != work.device:
        raise UserError(
            f"The task has a {work.device.upper()}, but JAX uses {jax.default_backend()}: install "
            f'jax for it on all nodes (pip install "fact-jax[{work.device}]").'
        )
    sweep = read_settings(pickle.loads(work.config))
    store = Store(work.workdir)
    scalars = Scalars(store.workdir) if sweep.tensorboard else None
    progress: list[Progress] = [_Notes(), *([scalars] if scalars else [])]
    rerun = lambda cell: work.command + cell  # noqa: E731
    return LocalRunner(sweep, store, Several(progress), rerun), scalars


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Says where a UserError comes from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"On {socket.gethostname()}: {error}") from error


class _Notes:
    """Prints notes, which Ray shows where the command runs."""

    def start(self, runs: list[Run], epochs: int) -> None:
        pass

    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None:
        pass

    def note(self, text: str) -> None:
        say(text)

    def waiting(self) -> None:
        pass
