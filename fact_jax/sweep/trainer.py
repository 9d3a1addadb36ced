"""Trains groups of runs: the frozen model, its compiled programs, and the data they share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fact_jax.backbone.config import get_variant
from fact_jax.backbone.download import find_weights
from fact_jax.backbone.weights import checksum, load_vit
from fact_jax.data.source import DataSettings, TaskData, open_task
from fact_jax.data.tasks import TEST, TRAIN, TRAIN_VAL, VAL, all_tasks, get_task
from fact_jax.errors import UserError
from fact_jax.sweep.packing import group_size, most_per_device
from fact_jax.sweep.plan import Cell
from fact_jax.training.evaluation import make_evaluate
from fact_jax.training.images import check_normalisation
from fact_jax.training.mesh import agree, make_mesh, put, replicated, stack
from fact_jax.training.run import train
from fact_jax.training.schedule import learning_rate
from fact_jax.training.trial import (
    Hyper,
    NonFiniteLoss,
    TrainSet,
    TrialState,
    init_trial,
    make_epoch,
    train_set,
)
from fact_jax.tuning import Method

VTAB_TRAIN_SIZE = 1000


class Progress(Protocol):
    """What the runner tells while it works."""

    def start(self, names: list[str], stage: str, epochs: int) -> None: ...
    def epoch(self, done: int, loss: float) -> None: ...


class Run(NamedTuple):
    """One training of a cell: with a candidate for its scale, or the final one."""

    cell: Cell
    stage: str
    scale: float

    @property
    def split(self) -> str:
        """What it is trained on."""
        return TRAIN_VAL if self.stage == "final" else TRAIN

    @property
    def eval_split(self) -> str:
        return TEST if self.stage == "final" else VAL


class Trained(NamedTuple):
    """What became of a run; the factors and the head are on the host."""

    run: Run
    trainable: dict
    losses: list[float]
    accuracies: list[float]
    error: NonFiniteLoss | None
    num_train: int
    num_eval: int
    details: dict[str, Any]


class Trainer:
    """The model, the compiled programs and the data that the runs of a sweep share."""

    def __init__(self, config: ConfigDict, progress: Progress):
        check_normalisation(config.normalisation)
        self.config, self.progress = config, progress
        changes = {k: config[k] for k in ("gelu", "dtype", "precision", "remat") if config[k]}
        vit = get_variant(config.variant)
        if config.image_size % vit.patch_size:
            raise UserError(
                f"config.image_size {config.image_size} is not a multiple of {config.variant}'s "
                f"patch size {vit.patch_size}."
            )
        self.weights = find_weights(config.variant, config.weights)
        self.model, self.base = load_vit(config.variant, self.weights, **changes)
        self.weights_sha256 = checksum(self.base)
        devices = len(jax.devices())
        self.eval_batch = -(-config.eval_batch_size // devices) * devices  # some for each
        self.eval_mesh = make_mesh(self.eval_batch)
        # One head size for all tasks, so that neither the programs nor the checkpoints of a cell
        # depend on which other tasks run with it.
        self.padded_classes = max(task.num_classes for task in all_tasks().values())
        self._data: dict[str, TaskData] = {}
        self._splits: dict[tuple[str, str], TrainSet] = {}
        self._stacked: tuple[Any, TrainSet] | None = None
        self._bases: dict[Mesh, dict] = {}
        self._epochs: dict[tuple[Method, Mesh], Callable] = {}
        self._evaluations: dict[Method, Callable] = {}

    def data(self, task: str) -> TaskData:
        """The opened task; UserError if its data are missing."""
        if task not in self._data:
            c = self.config
            settings = DataSettings(
                data_dir=c.data_dir or None,
                image_size=c.image_size,
                jpeg_quality=c.jpeg_quality or None,
                cache_dir=c.data_cache or None,
                download=c.download,
                mock=c.mock_data,
            )
            self._data[task] = open_task(get_task(task), settings)
        return self._data[task]

    def group_size(self, stages: list[int]) -> int:
        """Trials to stack for stages of so many runs each, by devices and memory."""
        c = self.config
        per_device = c.trials_per_device or most_per_device(
            self.model.config,
            c.batch_size,
            train_set_bytes=VTAB_TRAIN_SIZE * c.image_size**2 * 3,
            base_bytes=sum(x.nbytes for x in jax.tree.leaves(self.base)),
            device=jax.local_devices()[0],
        )
        size = group_size(stages, len(jax.devices()), c.batch_size, int(agree(per_device)))
        if (used := self.mesh(size).size) < len(jax.devices()) and jax.process_count() > 1:
            raise UserError(
                f"Batches of {c.batch_size} use {used} of the {len(jax.devices())} devices; with "
                "several processes all are needed. Choose another --config.batch_size."
            )
        return size

    def train(self, runs: list[Run], size: int, directory: epath.Path) -> list[Trained]:
        """Trains the runs in one stack of `size` trials and measures each."""
        s, batch_size = runs[0].cell.settings, self.config.batch_size
        splits = [self._split(run.cell.task, run.split) for run in runs]
        steps = [int(split.num_examples) // batch_size for split in splits]
        for run, split in zip(runs, splits, strict=True):
            if split.num_examples < batch_size:
                raise UserError(
                    f"Task {run.cell.task}: {split.num_examples} training images are fewer than "
                    f"one batch of {batch_size}. Lower --config.batch_size."
                )
        mesh = self.mesh(size)
        program, base = self._training(runs[0].cell.method, mesh)
        stacked = [*runs, *[runs[-1]] * (size - len(runs))]  # padded by runs that nobody reads
        names = [(run.cell.task, run.split) for run in stacked]
        if self._stacked is None or self._stacked[0] != names:  # only the last stack is kept
            self._stacked = None
            padded = [*splits, *[splits[-1]] * (size - len(splits))]
            self._stacked = (names, stack(padded, mesh))
        data = self._stacked[1]
        num_train = [int(split.num_examples) for split in splits]
        del splits
        seeds = stack([np.int32(run.cell.seed) for run in stacked], mesh)
        seconds = {"train": 0.0, "evaluate": 0.0}
        counted, totals = {"epochs": 0}, {}

        def fresh(run: Run) -> TrialState:
            classes = get_task(run.cell.task).num_classes
            return init_trial(
                self.model, run.cell.method, run.cell.seed, classes, self.padded_classes
            )

        def hyper(run: Run, e: int) -> Hyper:
            own = run.cell.settings
            rate = learning_rate(
                e, peak=own["learning_rate"], epochs=own["epochs"],
                warmup_epochs=own["warmup_epochs"],
            )  # fmt: skip
            rates = (own["dropout_rate"] or None, own["drop_path_rate"] or None)  # 0: left out
            return jax.tree.map(np.float32, Hyper(rate, own["weight_decay"], run.scale, *rates))

        def epoch(states: TrialState, e: int):
            t = time.time()
            hypers = stack([hyper(run, e) for run in stacked], mesh)
            out = program(base, states, data, hypers, seeds, np.int32(e), np.int32(max(steps)))
            jax.block_until_ready(out)
            seconds["train"] += time.time() - t
            counted["epochs"] += 1
            return out

        def evaluate(i: int, trainable: dict) -> float:
            t, cell = time.time(), runs[i].cell
            limit = cell.settings["eval_limit"] or None
            batches = self.data(cell.task).stream(runs[i].eval_split, self.eval_batch, limit)
            classes = get_task(cell.task).num_classes
            correct, totals[i] = self._evaluation(cell.method)(
                trainable, np.float32(runs[i].scale), classes, batches
            )
            seconds["evaluate"] += time.time() - t
            return 100.0 * correct / totals[i]

        self.progress.start([run.cell.name for run in runs], runs[0].stage, s["epochs"])
        outcome = train(
            epoch,
            stack([fresh(run) for run in stacked], mesh),
            epochs=s["epochs"],
            steps=steps,
            directory=directory,
            settings=[
                {**run.cell.settings, "scale": run.scale, "stage": run.stage} for run in runs
            ],
            evaluate=evaluate,
            eval_every=s["eval_every"] if s["protocol"] == "paper" else 0,
            on_epoch=self.progress.epoch,
        )
        details = {
            # Epochs of the final training that this process ran; others came from a checkpoint.
            "epochs_run": counted["epochs"],
            "stack": {"runs": len(runs), "trials": size, "mesh": dict(mesh.shape)},
            "seconds": {part: value / len(runs) for part, value in seconds.items()},  # its share
        }
        return [
            Trained(
                run,
                outcome.trainable[i],
                outcome.losses[i].tolist(),
                outcome.accuracies[i].tolist(),
                outcome.errors[i],
                num_train[i],
                # A run resumed after its last evaluation has counted nothing itself.
                totals.get(i)
                or self.data(run.cell.task).size(
                    run.eval_split, run.cell.settings["eval_limit"] or None
                ),
                details,
            )
            for i, run in enumerate(runs)
        ]

    def _split(self, task: str, split: str) -> TrainSet:
        """The split on the host; the last two are kept."""
        if (task, split) not in self._splits:
            limit = self.config.train_limit or None
            images, labels = self.data(task).load(split, limit)
            capacity = max(len(images), limit or VTAB_TRAIN_SIZE)
            while len(self._splits) >= 2:
                self._splits.pop(next(iter(self._splits)))
            classes = get_task(task).num_classes
            self._splits[task, split] = train_set(images, labels, classes, capacity)
        return self._splits[task, split]

    def mesh(self, size: int) -> Mesh:
        """Where a stack of this size is trained."""
        return make_mesh(self.config.batch_size, num_trials=size)

    def _on(self, mesh: Mesh) -> dict:
        """The frozen weights on a mesh; in one process, meshes of the same devices share a copy."""
        if mesh not in self._bases:
            there = list(self._bases.values()) if jax.process_count() == 1 else []
            self._bases[mesh] = put(there[0] if there else self.base, replicated(mesh))
        return self._bases[mesh]

    def _training(self, method: Method, mesh: Mesh) -> tuple[Callable, dict]:
        c, key = self.config, (method, mesh)
        if key not in self._epochs:
            self._epochs[key] = make_epoch(self.model, method, c.normalisation, c.batch_size, mesh)
        return self._epochs[key], self._on(mesh)

    def _evaluation(self, method: Method) -> Callable:
        if method not in self._evaluations:
            evaluate = make_evaluate(
                self.model, method, self.config.normalisation, self.eval_batch, self.eval_mesh
            )
            self._evaluations[method] = functools.partial(evaluate, self._on(self.eval_mesh))
        return self._evaluations[method]
