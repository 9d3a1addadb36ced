"""Trains groups of runs: the frozen model, its compiled programs, and the data they share."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fact_jax.data import get_task
from fact_jax.data.catalog import all_tasks
from fact_jax.errors import UserError
from fact_jax.files.download import find_weights
from fact_jax.files.weights import checksum, load_vit
from fact_jax.sweep.evolution import Architecture
from fact_jax.sweep.feed import Feed
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.packing import group_size, most_per_device
from fact_jax.sweep.plan import Cell, task_names
from fact_jax.sweep.runs import Progress, Run, Trained
from fact_jax.sweep.settings import SweepSettings
from fact_jax.training.evaluation import make_evaluate
from fact_jax.training.mesh import agree, make_mesh, put, replicated, stack
from fact_jax.training.recipe import Recipe
from fact_jax.training.run import train
from fact_jax.training.schedule import learning_rate
from fact_jax.training.trial import (
    Hyper,
    TrialState,
    init_trial,
    make_epoch,
    num_steps,
)
from fact_jax.tuning import Method, count_parameters


def _array(architecture: Architecture | None) -> np.ndarray | None:
    return None if architecture is None else np.array(architecture, np.int32)


class Trainer:
    """The model, the compiled programs and the data that the runs of a sweep share."""

    def __init__(self, sweep: SweepSettings, progress: Progress, feed: Feed | None = None):
        self.sweep, self.progress = sweep, progress
        if sweep.attention == "cudnn" and jax.default_backend() != "gpu":
            raise UserError(
                "config.attention 'cudnn' is a kernel of NVIDIA GPUs, and jax runs on "
                f"{jax.default_backend()} here. Set it to 'xla'."
            )
        self.feed = feed or Feed(sweep)
        self.weights = find_weights(sweep.run.variant, sweep.weights)
        changes = {**sweep.run.network, "remat": sweep.remat, "attention": sweep.attention}
        self.model, self.base = load_vit(sweep.run.variant, self.weights, **changes)
        self.weights_sha256 = checksum(self.base)
        devices = len(jax.devices())
        self.eval_batch = -(-sweep.eval_batch_size // devices) * devices  # some for each
        self.eval_mesh = make_mesh(self.eval_batch)
        # One head size for all tasks, so that neither the programs nor the checkpoints of a cell
        # depend on which other tasks run with it (but for a folder of more classes than those).
        names = task_names(sweep.tasks, sweep.shots)
        folders = [self.feed.task(name) for name in names if get_task(name).folder]
        self.padded_classes = max(task.num_classes for task in (*all_tasks().values(), *folders))
        self._bases: dict[Mesh, dict] = {}
        self._epochs: dict[tuple[Method, Mesh, Recipe, bool], Callable] = {}
        self._evaluations: dict[Method, Callable] = {}

    def group_size(self, stages: list[int], cells: list[Cell]) -> int:
        """Trials to stack for stages of so many runs each of these cells, by devices and memory."""
        settings, method, config = cells[0].settings, cells[0].method, self.model.config

        def begin(base):
            factors = method.init(jax.random.key(0), config, base)
            return factors, method.adaptation(factors, config).prompts

        factors, prompts = jax.eval_shape(begin, self.base)
        images = max(map(self.feed.capacity, cells)) * (2 if settings.augment else 1)
        per_device = self.sweep.trials_per_device or most_per_device(
            config,
            settings.batch_size,
            # Factors, their two moments and their gradient.
            state_bytes=images * settings.image_size**2 * 3 + 16 * count_parameters(factors),
            base_bytes=sum(x.nbytes for x in jax.tree.leaves(self.base)),
            device=jax.local_devices()[0],
            num_prompts=prompts.tokens.shape[1] if prompts else 0,
        )
        devices, batch_size = len(jax.devices()), settings.batch_size
        size = group_size(stages, devices, batch_size, int(agree(per_device)))
        used = make_mesh(batch_size, num_trials=size).size
        if used < devices and jax.process_count() > 1:
            raise UserError(
                f"Batches of {batch_size} use {used} of the {devices} devices; with several "
                "processes all are needed. Choose another --config.batch_size."
            )
        return size

    def train(self, runs: list[Run], size: int, directory: epath.Path) -> list[Trained]:
        """Trains the runs in one stack of `size` trials and measures each."""
        settings = runs[0].cell.settings
        mesh = make_mesh(settings.batch_size, num_trials=size)
        data, num_train = self.feed.stack(runs, size, mesh)
        steps = [num_steps(number, settings.batch_size) for number in num_train]
        recipe, supernet = runs[0].cell.recipe, runs[0].stage == "supernet"
        program, base = self._training(runs[0].cell, mesh, supernet)
        stacked = [*runs, *[runs[-1]] * (size - len(runs))]  # padded by runs that nobody reads
        seeds = stack([np.int32(run.cell.seed) for run in stacked], mesh)
        seconds = {"train": 0.0, "evaluate": 0.0}
        counted, totals, findings = {"epochs": 0}, {}, {}

        def fresh(run: Run) -> TrialState:
            classes = self.feed.task(run.cell.task).num_classes
            cell, padded = run.cell, self.padded_classes
            return init_trial(
                self.model, cell.method, cell.seed, classes, padded, self.base, recipe
            )

        def hyper(run: Run, e: int) -> Hyper:
            s = run.cell.settings
            rate = learning_rate(
                e, peak=run.peak_rate, epochs=run.epochs, warmup_epochs=s.warmup_epochs
            )
            rates = (s.dropout_rate or None, s.drop_path_rate or None)  # 0: left out
            numbers = Hyper(rate, run.candidate.weight_decay, run.candidate.scale, *rates)
            return jax.tree.map(np.float32, numbers)._replace(choice=_array(run.choice))

        def epoch(states: TrialState, e: int):
            nonlocal data
            t = time.perf_counter()
            if settings.augment:
                data = self.feed.views(runs, e, data, mesh)
            hypers = stack([hyper(run, e) for run in stacked], mesh)
            out = program(base, states, data, hypers, seeds, np.int32(e), np.int32(max(steps)))
            jax.block_until_ready(out)
            seconds["train"] += time.perf_counter() - t
            counted["epochs"] += 1
            return out

        def evaluate(i: int, trainable: dict) -> float:
            t, cell = time.perf_counter(), runs[i].cell
            limit = cell.settings.eval_limit or None
            batches = self.feed.data(cell.task).stream(runs[i].eval_split, self.eval_batch, limit)
            classes = self.feed.task(cell.task).num_classes
            findings[i] = Findings(classes)
            scale, choice = np.float32(runs[i].candidate.scale), _array(runs[i].choice)
            correct, totals[i] = self._evaluation(cell.method)(
                trainable, scale, classes, batches, choice, findings[i].add
            )
            seconds["evaluate"] += time.perf_counter() - t
            return 100.0 * correct / totals[i]

        epochs = runs[0].epochs
        self.progress.start(runs, epochs)
        outcome = train(
            epoch,
            stack([fresh(run) for run in stacked], mesh),
            epochs=epochs,
            steps=steps,
            directory=directory,
            settings=[
                {**run.cell.all_settings, **run.candidate._asdict(), "stage": run.stage}
                for run in runs
            ],
            evaluate=None if supernet else evaluate,
            eval_every=settings.eval_every if settings.protocol == "paper" else 0,
            on_epoch=self.progress.epoch,
        )
        for i, run in enumerate(runs):
            if run.stage == "final" and i not in findings and outcome.errors[i] is None:
                evaluate(i, outcome.trainable[i])  # done before the sweep was stopped
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
                # A candidate resumed after its evaluation has counted nothing itself.
                totals.get(i)
                or self.feed.data(run.cell.task).size(
                    run.eval_split, run.cell.settings.eval_limit or None
                ),
                details,
                findings.get(i),
            )
            for i, run in enumerate(runs)
        ]

    def fitness(self, trained: Trained) -> Callable[[Architecture], float]:
        """Accuracy in % on the validation split by architecture, all with these factors."""
        run, cell = trained.run, trained.run.cell
        limit = cell.settings.eval_limit or None
        batches = list(self.feed.data(cell.task).stream(run.eval_split, self.eval_batch, limit))
        classes, evaluate = self.feed.task(cell.task).num_classes, self._evaluation(cell.method)

        def accuracy(architecture: Architecture) -> float:
            scale, choice = np.float32(run.candidate.scale), _array(architecture)
            correct, total = evaluate(trained.trainable, scale, classes, batches, choice)
            return 100.0 * correct / total

        return accuracy

    def _on(self, mesh: Mesh) -> dict:
        """The frozen weights on a mesh; in one process, meshes of the same devices share a copy."""
        if mesh not in self._bases:
            there = list(self._bases.values()) if jax.process_count() == 1 else []
            self._bases[mesh] = put(there[0] if there else self.base, replicated(mesh))
        return self._bases[mesh]

    def _training(self, cell: Cell, mesh: Mesh, supernet: bool) -> tuple[Callable, dict]:
        key = (cell.method, mesh, cell.recipe, supernet)
        if key not in self._epochs:
            data = (cell.settings.normalisation, cell.settings.batch_size)
            self._epochs[key] = make_epoch(
                self.model, cell.method, *data, mesh, cell.recipe, supernet
            )
        return self._epochs[key], self._on(mesh)

    def _evaluation(self, method: Method) -> Callable:
        if method not in self._evaluations:
            evaluate = make_evaluate(
                self.model, method, self.sweep.run.normalisation, self.eval_batch, self.eval_mesh
            )
            self._evaluations[method] = functools.partial(evaluate, self._on(self.eval_mesh))
        return self._evaluations[method]
