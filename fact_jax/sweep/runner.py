"""Runs the cells of a plan: data, training, selection, evaluation, and what is stored of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from fact_jax.backbone.config import get_variant
from fact_jax.backbone.download import find_weights
from fact_jax.backbone.weights import checksum, load_vit
from fact_jax.data.source import DataSettings, TaskData, open_task
from fact_jax.data.tasks import TEST, TRAIN, TRAIN_VAL, VAL, all_tasks, get_task
from fact_jax.errors import UserError
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.store import Store
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import make_evaluate
from fact_jax.training.images import check_normalisation
from fact_jax.training.mesh import make_mesh, replicated
from fact_jax.training.run import train
from fact_jax.training.schedule import learning_rate
from fact_jax.training.trial import (
    Hyper,
    TrialState,
    epoch_key,
    init_trial,
    make_epoch,
    put_train_set,
)  # fmt: skip
from fact_jax.tuning import Method, count_parameters
from fact_jax.tuning.files import to_bytes

VTAB_TRAIN_SIZE = 1000


class Progress(Protocol):
    """What the runner tells while it works."""

    def start(self, cell: Cell, stage: str, epochs: int) -> None: ...
    def epoch(self, done: int, loss: float) -> None: ...


class Runner:
    """The model, the compiled programs and the data settings that the cells of a sweep share."""

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
        self.model, base = load_vit(config.variant, self.weights, **changes)
        self.weights_sha256 = checksum(base)
        self.mesh = make_mesh(math.gcd(config.batch_size, config.eval_batch_size))
        self.base = jax.device_put(base, replicated(self.mesh))
        # One head size for all tasks, so that neither the programs nor the checkpoints of a cell
        # depend on which other tasks run with it.
        self.padded_classes = max(task.num_classes for task in all_tasks().values())
        self._programs: dict[Method, tuple[Callable, Callable]] = {}
        self._data: dict[str, TaskData] = {}
        self._train_sets: dict[tuple[str, str], Any] = {}

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

    def _checkpoints(self, cell: Cell, stage: str) -> epath.Path:
        """Where a stage's checkpoints lie: elsewhere for every other setting, data or head size."""
        data = {k: self.data(cell.task).provenance[k] for k in ("used_version", "fingerprint")}
        made_with = {**self.settings(cell), **data, "padded_classes": self.padded_classes}
        text = json.dumps(made_with, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.store.checkpoint_dir(cell.name, f"{stage}-{digest}")

    def run(self, cell: Cell) -> dict[str, Any]:
        """Selects (if there is a choice), trains, evaluates and stores one cell."""
        started = time.time()
        selection: dict[str, float] = {}
        scale = cell.scales[0]
        if len(cell.scales) > 1:
            for candidate in cell.scales:
                accuracy = self._train(cell, f"select_scale={candidate:g}", candidate, TRAIN, VAL)
                selection[f"{candidate:g}"] = accuracy["accuracies"][-1]
            # The first of equals: max() keeps the earliest.
            scale = max(cell.scales, key=lambda s: selection[f"{s:g}"])
        outcome = self._train(cell, "final", scale, TRAIN_VAL, TEST)
        return self._store(cell, scale, selection, outcome, time.time() - started)

    def _train(self, cell: Cell, stage: str, scale: float, split: str, eval_split: str) -> dict:
        """Trains on `split` and measures on `eval_split`; curves and the trained pytree."""
        task, s = get_task(cell.task), cell.settings
        data, train_set = self.data(cell.task), self._train_set(cell.task, split)
        steps = int(train_set.num_examples) // s["batch_size"]
        if steps == 0:
            raise UserError(
                f"Task {cell.task}: {int(train_set.num_examples)} training images are fewer than "
                f"one batch of {s['batch_size']}. Lower --config.batch_size."
            )
        epoch_program, evaluate_program = self._program(cell.method)
        state = jax.device_put(
            init_trial(self.model, cell.method, cell.seed, task.num_classes, self.padded_classes),
            replicated(self.mesh),
        )
        seconds = {"train": 0.0, "evaluate": 0.0}
        counted = {"epochs": 0}

        def epoch(state: TrialState, e: int):
            rate = learning_rate(
                e, peak=s["learning_rate"], epochs=s["epochs"], warmup_epochs=s["warmup_epochs"]
            )
            rates = (s["dropout_rate"] or None, s["drop_path_rate"] or None)  # 0: left out
            numbers = Hyper(rate, s["weight_decay"], scale, *rates)
            hyper = jax.tree.map(jnp.float32, numbers)
            t = time.time()
            out = jax.block_until_ready(
                epoch_program(self.base, state, train_set, hyper, epoch_key(cell.seed, e))
            )
            seconds["train"] += time.time() - t
            counted["epochs"] += 1
            return out

        def evaluate(state: TrialState) -> float:
            t = time.time()
            batches = data.stream(eval_split, self.config.eval_batch_size, s["eval_limit"] or None)
            correct, total = evaluate_program(
                self.base, state.trainable, np.float32(scale), task.num_classes, batches
            )
            seconds["evaluate"] += time.time() - t
            counted["total"] = total
            return 100.0 * correct / total

        self.progress.start(cell, stage, s["epochs"])
        state, losses, accuracies = train(
            epoch,
            state,
            epochs=s["epochs"],
            steps_per_epoch=steps,
            directory=self._checkpoints(cell, stage),
            settings={**s, "scale": scale, "stage": stage},
            evaluate=evaluate,
            eval_every=s["eval_every"] if s["protocol"] == "paper" else 0,
            on_epoch=self.progress.epoch,
        )
        return {
            "trainable": state.trainable,
            "losses": losses.tolist(),
            "accuracies": accuracies.tolist(),
            "seconds": seconds,
            "epochs_run": counted["epochs"],
            "num_train": int(train_set.num_examples),
            # A run resumed after its last evaluation has counted nothing itself.
            "num_eval": counted.get("total") or data.size(eval_split, s["eval_limit"] or None),
        }

    def _train_set(self, task: str, split: str):
        """The split on the device; only the last one is kept."""
        if (task, split) not in self._train_sets:
            limit = self.config.train_limit or None
            images, labels = self.data(task).load(split, limit)
            capacity = max(len(images), limit or VTAB_TRAIN_SIZE)
            classes = get_task(task).num_classes
            self._train_sets = {
                (task, split): put_train_set(images, labels, classes, capacity, self.mesh)
            }
        return self._train_sets[task, split]

    def _program(self, method: Method) -> tuple[Callable, Callable]:
        if method not in self._programs:
            c = self.config
            self._programs[method] = (
                make_epoch(self.model, method, c.normalisation, c.batch_size, self.mesh),
                make_evaluate(self.model, method, c.normalisation, c.eval_batch_size, self.mesh),
            )
        return self._programs[method]

    def _store(self, cell, scale, selection, outcome, seconds: float) -> dict[str, Any]:
        task, paper = get_task(cell.task), cell.settings["protocol"] == "paper"
        measured = [a for a in outcome["accuracies"] if not math.isnan(a)]
        last = outcome["accuracies"][-1]
        trainable = jax.tree.map(np.asarray, outcome["trainable"])
        trainable["head"] = {k: v[..., : task.num_classes] for k, v in trainable["head"].items()}
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
        self.store.write_factors(cell.name, content)
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
            "num_train": outcome["num_train"],
            "num_test": outcome["num_eval"],
            # Epochs of the final training that this process ran; the others came from a checkpoint.
            "epochs_run": outcome["epochs_run"],
            "losses": outcome["losses"],
            "test_accuracies": [None if math.isnan(a) else a for a in outcome["accuracies"]],
            "seconds": {**outcome["seconds"], "cell": seconds},
            "settings": self.settings(cell),
            "data": self.data(cell.task).provenance,
            "weights": str(self.weights),
            "environment": environment(),
        }
        self.store.write_json(self.store.result_path(cell.name), result)
        return result
