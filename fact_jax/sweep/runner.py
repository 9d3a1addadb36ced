"""Runs the cells of a plan: data, groups that train together, selection, evaluation, results."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from fact_jax.sweep.store import Store
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import make_evaluate
from fact_jax.training.images import check_normalisation
from fact_jax.training.mesh import make_mesh, put, replicated, stack
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
)  # fmt: skip
from fact_jax.tuning import Method, count_parameters
from fact_jax.tuning.files import to_bytes

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


def _candidates(cells: Sequence[Cell]) -> list[Run]:
    several = (cell for cell in cells if len(cell.scales) > 1)
    return [Run(cell, "selection", scale) for cell in several for scale in cell.scales]


def _kind(cell: Cell) -> tuple:
    """Cells of one kind can train in one program, epoch by epoch."""
    s = cell.settings
    left_out = (s["dropout_rate"] == 0, s["drop_path_rate"] == 0)
    return cell.method, s["epochs"], s["eval_every"], left_out


class Runner:
    """The model, the compiled programs and the data that the cells of a sweep share."""

    def __init__(self, config: ConfigDict, store: Store, progress: Progress):
        check_normalisation(config.normalisation)
        self.config, self.store, self.progress = config, store, progress
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
        self.eval_mesh = make_mesh(config.eval_batch_size)
        # One head size for all tasks, so that neither the programs nor the checkpoints of a cell
        # depend on which other tasks run with it.
        self.padded_classes = max(task.num_classes for task in all_tasks().values())
        self._data: dict[str, TaskData] = {}
        self._splits: dict[tuple[str, str], TrainSet] = {}
        self._stacked: tuple[Any, TrainSet] | None = None
        self._programs: dict[Any, Any] = {}

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

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the cell's result depends on."""
        return {**cell.settings, "weights_sha256": self.weights_sha256}

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The stored result of a cell; UserError if it was made with other settings."""
        path = self.store.result_path(cell.name)
        result = self.store.read_json(path)
        if result is not None:
            old, new = result.get("settings", {}), self.settings(cell)
            changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            if changed:
                text = ", ".join(f"{k} was {old.get(k)!r}, is now {new.get(k)!r}" for k in changed)
                raise UserError(
                    f"{path} was made with other settings: {text}. Use another --workdir, or "
                    "remove that file to run the cell again."
                )
        return result

    def run(
        self, cells: list[Cell], results: list[dict[str, Any] | None]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, result) of every cell whose entry in `results` is None, as soon as it is there.

        Cells of a kind are stacked into groups, in their order. One that leaves the finite numbers
        does not stop the others: NonFiniteLoss is raised at the end.
        """
        kinds: dict[tuple, list[int]] = {}
        for i, cell in enumerate(cells):
            kinds.setdefault(_kind(cell), []).append(i)
        groups = []
        for members in kinds.values():
            size = self._group_size([cells[i] for i in members])
            groups += [(size, group) for group in _batches(members, size)]
        failures: list[NonFiniteLoss] = []
        for size, group in sorted(groups, key=lambda g: g[1][-1]):  # in the plan's order
            if any(results[i] is None for i in group):
                yield from self._run_group(cells, results, group, size, failures)
        if failures:
            raise failures[0]

    def _group_size(self, cells: list[Cell]) -> int:
        """Trials in a group, from the whole sweep and not from what is left of it: the last bits of
        a result may depend on it."""
        c = self.config
        per_device = c.trials_per_device or most_per_device(
            self.model.config,
            c.batch_size,
            train_set_bytes=VTAB_TRAIN_SIZE * c.image_size**2 * 3,
            base_bytes=sum(x.nbytes for x in jax.tree.leaves(self.base)),
            device=jax.devices()[0],
        )
        stages = [len(_candidates(cells)), len(cells)]
        return group_size(stages, len(jax.devices()), c.batch_size, per_device)

    def _run_group(
        self,
        cells: list[Cell],
        results: list[dict[str, Any] | None],
        group: list[int],
        size: int,
        failures: list[NonFiniteLoss],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Selects (where there is a choice), trains, evaluates and stores up to `size` cells."""
        # Once it has begun a group stays as it is, so that its checkpoints are found again.
        whole = [cells[i] for i in group]
        first = (_candidates(whole) or [Run(c, "final", c.scales[0]) for c in whole])[:size]
        if not self._directory(first, size).exists():
            group = [i for i in group if results[i] is None]
        started = time.time()
        selection: dict[int, dict[str, float]] = {i: {} for i in group}
        index = {cells[i].name: i for i in group}
        failed = set()
        directories = []

        def train_all(runs: list[Run]) -> Iterator[tuple[int, Trained]]:
            for part in _batches(runs, size):
                directories.append(self._directory(part, size))
                for trained in self._train(part, size, directories[-1]):
                    i = index[trained.run.cell.name]
                    if trained.error is None:
                        yield i, trained
                    elif i not in failed:
                        failures.append(trained.error)
                        failed.add(i)

        for i, trained in train_all(_candidates([cells[i] for i in group])):
            selection[i][f"{trained.run.scale:g}"] = trained.accuracies[-1]
        finals = []
        for i in (i for i in group if i not in failed):
            scores, scales = selection[i], cells[i].scales
            # The first of equals: max() keeps the earliest.
            best = max(scales, key=lambda s: scores[f"{s:g}"]) if scores else scales[0]  # noqa: B023
            finals.append(Run(cells[i], "final", best))
        for i, trained in train_all(finals):
            if results[i] is None:
                yield i, self._store(trained, selection[i], time.time() - started)
        if not failed and jax.process_index() == 0:
            for directory in directories:
                directory.rmtree()

    def _directory(self, runs: list[Run], size: int) -> epath.Path:
        """Where the checkpoints of these runs lie: elsewhere for any other setting, data, head size
        or stack."""
        made_with: list[Any] = [size, self.padded_classes, dict(self._mesh(size).shape)]
        for cell, stage, scale in runs:
            provenance = self.data(cell.task).provenance
            data = {k: provenance[k] for k in ("used_version", "fingerprint")}
            made_with.append({**self.settings(cell), **data, "stage": stage, "scale": scale})
        text = json.dumps(made_with, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = runs[0].cell.name + (f"-and-{len(runs) - 1}-more" if len(runs) > 1 else "")
        return self.store.checkpoint_dir(name, f"{runs[0].stage}-{digest}")

    def _train(self, runs: list[Run], size: int, directory: epath.Path) -> list[Trained]:
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
        mesh = self._mesh(size)
        program, base = self._training(runs[0].cell.method, mesh)
        stacked = [*runs, *[runs[-1]] * (size - len(runs))]  # padded by runs that nobody reads
        data = self._stack_of_splits([(run.cell.task, run.split) for run in stacked], mesh)
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
            batches = self.data(cell.task).stream(
                runs[i].eval_split, self.config.eval_batch_size, limit
            )
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
            "group": {"runs": len(runs), "trials": size, "mesh": dict(mesh.shape)},
            "seconds": seconds,
        }
        return [
            Trained(
                run,
                outcome.trainable[i],
                outcome.losses[i].tolist(),
                outcome.accuracies[i].tolist(),
                outcome.errors[i],
                int(splits[i].num_examples),
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
        """The split on the host; the last few are kept."""
        if (task, split) not in self._splits:
            limit = self.config.train_limit or None
            images, labels = self.data(task).load(split, limit)
            capacity = max(len(images), limit or VTAB_TRAIN_SIZE)
            while len(self._splits) >= 2 * len(jax.devices()):
                self._splits.pop(next(iter(self._splits)))
            classes = get_task(task).num_classes
            self._splits[task, split] = train_set(images, labels, classes, capacity)
        return self._splits[task, split]

    def _stack_of_splits(self, names: list[tuple[str, str]], mesh: Mesh) -> TrainSet:
        """The splits on the devices; only the last stack is kept."""
        if self._stacked is None or self._stacked[0] != names:
            self._stacked = None
            self._stacked = (names, stack([self._split(*name) for name in names], mesh))
        return self._stacked[1]

    def _mesh(self, size: int) -> Mesh:
        return make_mesh(self.config.batch_size, num_trials=size)

    def _on(self, mesh: Mesh) -> dict:
        """The frozen weights on a mesh; meshes of the same devices share one copy."""
        if mesh not in self._programs:
            self._programs[mesh] = put(self.base, replicated(mesh))
        return self._programs[mesh]

    def _training(self, method: Method, mesh: Mesh) -> tuple[Callable, dict]:
        c, key = self.config, (method, mesh)
        if key not in self._programs:
            self._programs[key] = make_epoch(
                self.model, method, c.normalisation, c.batch_size, mesh
            )
        return self._programs[key], self._on(mesh)

    def _evaluation(self, method: Method) -> Callable:
        c = self.config
        if method not in self._programs:
            self._programs[method] = functools.partial(
                make_evaluate(
                    self.model, method, c.normalisation, c.eval_batch_size, self.eval_mesh
                ),
                self._on(self.eval_mesh),
            )
        return self._programs[method]

    def _store(
        self, trained: Trained, selection: dict[str, float], seconds: float
    ) -> dict[str, Any]:
        cell, scale, accuracies = trained.run.cell, trained.run.scale, trained.accuracies
        task, paper = get_task(cell.task), cell.settings["protocol"] == "paper"
        measured, last = [a for a in accuracies if not math.isnan(a)], accuracies[-1]
        head = {k: v[..., : task.num_classes] for k, v in trained.trainable["head"].items()}
        trainable = {**trained.trainable, "head": head}
        fields = {
            "task": cell.task,
            "class_names": self.data(cell.task).class_names,
            "variant": self.config.variant,
            "weights_sha256": self.weights_sha256,
            "image_size": self.config.image_size,
            "normalisation": self.config.normalisation,
            "jpeg_quality": self.config.jpeg_quality or None,
            "protocol": cell.settings["protocol"],
        }
        method = dataclasses.replace(cell.method, scale=scale)
        content = to_bytes(method, trainable, self.model.config, fields)
        result = {
            "cell": cell.name,
            "method": cell.method_name,
            **{k: fields[k] for k in ("task", "protocol", "variant")},
            "group": task.group,
            "seed": cell.seed,
            # 'paper' reports the best of its test evaluations, as the published numbers do.
            "accuracy": max(measured) if paper else last,
            "accuracy_last_epoch": last,
            "scale": scale,
            "selection_val200": selection,
            "num_factors": count_parameters(trainable["factors"]),
            "num_head": count_parameters(trainable["head"]),
            "factor_file_bytes": len(content),
            "num_train": trained.num_train,
            "num_test": trained.num_eval,
            "losses": trained.losses,
            "test_accuracies": [None if math.isnan(a) else a for a in accuracies],
            **trained.details,
            "seconds": {**trained.details["seconds"], "cell": seconds},
            "settings": self.settings(cell),
            "data": self.data(cell.task).provenance,
            "weights": str(self.weights),
            "environment": environment(),
        }
        self.store.write_factors(cell.name, content)
        self.store.write_json(self.store.result_path(cell.name), result)
        return result


def _batches(items: Sequence[Any], size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
