"""Trains groups of runs: the frozen model, its compiled programs, and the data they share."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fact_jax.algebra.quantise import Bits, rounded
from fact_jax.backbone.adaptation import Prompts
from fact_jax.data import Examples, get_task
from fact_jax.data.catalog import all_tasks
from fact_jax.errors import UserError
from fact_jax.files.dictionary import Dictionary
from fact_jax.files.download import find_weights
from fact_jax.files.weights import checksum, load_vit
from fact_jax.sweep.evolution import Architecture
from fact_jax.sweep.feed import Feed
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.packing import group_size, most_per_device
from fact_jax.sweep.plan import Cell, task_names
from fact_jax.sweep.runs import Progress, Run, Trained
from fact_jax.sweep.settings import SweepSettings
from fact_jax.sweep.shared import dictionary_for, untrained, with_shared
from fact_jax.sweep.start import Start
from fact_jax.training.evaluation import Evaluator, Merged
from fact_jax.training.losses import balanced_weights
from fact_jax.training.mesh import agree, make_mesh, put, replicated, stack
from fact_jax.training.run import Outcome, Training
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import Stepped, TrainStep
from fact_jax.training.trial import Hyper, Trainable, Trial, TrialState
from fact_jax.tuning import count_parameters
from fact_jax.tuning.method import Base, Factors, SharingMethod


def _array(architecture: Architecture | None) -> np.ndarray | None:
    return None if architecture is None else np.array(architecture, np.int32)


def _as_stored(trainable: Trainable, bits: Bits | None, classes: int) -> Trainable:
    """The trained numbers as their factor file has them, with the head's padding."""
    if bits is None:
        return trainable
    head = {name: x[..., :classes] for name, x in trainable["head"].items()}
    stored: Trainable = jax.tree.map(np.asarray, rounded({**trainable, "head": head}, bits))
    for name, x in trainable["head"].items():
        stored["head"][name] = np.concatenate([stored["head"][name], x[..., classes:]], axis=-1)
    return stored


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
        batch = -(-sweep.eval_batch_size // devices) * devices  # some for each
        self.evaluator = Evaluator(
            self.model.config, sweep.run.normalisation, batch, make_mesh(batch)
        )
        # One head size for all tasks, so that neither the programs nor the checkpoints of a cell
        # depend on which other tasks run with it (but for a folder of more classes than those).
        names = task_names(sweep.tasks, sweep.shots)
        folders = [self.feed.task(name) for name in names if get_task(name).folder]
        self.padded_classes = max(task.num_classes for task in (*all_tasks().values(), *folders))
        self._bases: dict[Mesh, Base] = {}
        self._steps: dict[TrainStep, TrainStep] = {}

    def group_size(self, stages: list[int], cells: list[Cell]) -> int:
        """Trials to stack for stages of so many runs each of these cells, by devices and memory."""
        settings, method, config = cells[0].settings, cells[0].method, self.model.config

        def begin(base: Base) -> tuple[Factors, Prompts | None]:
            factors = method.init(jax.random.key(0), config, base)
            return factors, method.adaptation(factors, config).prompts

        factors, prompts = jax.eval_shape(begin, self.base)
        images = max(map(self.feed.capacity, cells)) * (2 if settings.augment else 1)
        per_device = self.sweep.trials_per_device or most_per_device(
            config,
            settings.batch_size * (2 if settings.consistency == "full" else 1),
            # Factors, their two moments and their gradient.
            state_bytes=images * settings.image_size**2 * 3
            + 16 * count_parameters(factors)
            + 4 * images * self.padded_classes * (settings.consistency == "fast"),
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
        return RunStack(self, runs, size).train(directory)

    def step(self, cell: Cell, mesh: Mesh, sampled: bool) -> TrainStep:
        """The training step of a cell; equal ones are the same object, with its program."""
        settings = cell.settings
        step = TrainStep(
            self.model,
            cell.method,
            settings.normalisation,
            settings.batch_size,
            mesh,
            cell.recipe,
            sampled,
            cell.method.shared if cell.together and isinstance(cell.method, SharingMethod) else (),
            self.feed.task(cell.task).multi_label,
        )
        return self._steps.setdefault(step, step)

    def dictionary(self, cell: Cell) -> Dictionary | None:
        """The dictionary of a cell, if it shares one that is there already."""
        if cell.dictionary is None:
            return None
        config = self.model.config
        return dictionary_for(cell.dictionary, cell.method, config, self.weights_sha256)

    def batches(self, run: Run) -> Iterator[Examples]:
        """The images that a run is measured on."""
        limit = run.cell.settings.eval_limit or None
        return self.feed.data(run.cell.task).stream(
            run.eval_split, self.evaluator.batch_size, limit
        )

    def measure(self, run: Run, trainable: Trainable, batches: Iterable[Examples]) -> Findings:
        """The findings of a trained run on these images."""
        cell, mesh, task = run.cell, self.evaluator.mesh, self.feed.task(run.cell.task)
        classes = task.num_classes
        stored = _as_stored(trainable, cell.recipe.bits, classes)
        trained = Merged.of(
            cell.method,
            self.model.config,
            self.on(mesh),
            put(with_shared(stored, self.dictionary(cell)), replicated(mesh)),
            np.float32(run.candidate.scale),
            choice=_array(run.choice),
        )
        findings = Findings(classes, task.multi_label)
        for images, labels, logits in self.evaluator.predictions(trained, classes, batches):
            findings.add(images, labels, logits)
        return findings

    def fitness(self, trained: Trained) -> Callable[[Architecture], float]:
        """The measure in % on the validation split by architecture, all with these factors."""
        batches = list(self.batches(trained.run))

        def score(architecture: Architecture) -> float:
            run = trained.run._replace(choice=architecture)
            findings = self.measure(run, trained.trainable, batches)
            return findings.score(run.cell.settings.select_by)

        return score

    def on(self, mesh: Mesh) -> Base:
        """The frozen weights on a mesh; in one process, meshes of the same devices share a copy."""
        if mesh not in self._bases:
            there = list(self._bases.values()) if jax.process_count() == 1 else []
            self._bases[mesh] = put(there[0] if there else self.base, replicated(mesh))
        return self._bases[mesh]


class RunStack:
    """Runs of one kind that train together, in one stack of `size` trials."""

    def __init__(self, trainer: Trainer, runs: list[Run], size: int):
        self._trainer, self._feed, self._runs = trainer, trainer.feed, runs
        first = runs[0]
        self._settings, self._epochs = first.cell.settings, first.epochs
        self._supernet = first.stage == "supernet"
        self._mesh = make_mesh(self._settings.batch_size, num_trials=size)
        self._step = trainer.step(first.cell, self._mesh, self._supernet)
        self._base = trainer.on(self._mesh)
        self._stacked = [*runs, *[runs[-1]] * (size - len(runs))]  # padded by runs nobody reads
        padded = trainer.padded_classes
        self._data, self._num_train = self._feed.stack(runs, size, self._mesh, padded)
        self._steps = [int(self._step.num_steps(number)) for number in self._num_train]
        self._seeds = stack([np.int32(run.cell.seed) for run in self._stacked], self._mesh)
        dictionaries = [trainer.dictionary(run.cell) for run in self._stacked]
        shared = [dictionary.factors for dictionary in dictionaries if dictionary is not None]
        self._shared: Factors | None = stack(shared, self._mesh) if shared else None
        self._class_weights = self._balanced() if self._settings.class_weights else None
        self._findings: dict[int, Findings] = {}
        self._seconds = {"train": 0.0, "evaluate": 0.0}
        self._epochs_run = 0

    def _balanced(self) -> np.ndarray:
        """The weights of each run's classes, stacked."""
        padded = self._trainer.padded_classes
        weights = []
        for run in self._stacked:
            labels, task = self._feed.labels(run), self._feed.task(run.cell.task)
            weights.append(balanced_weights(labels, task.num_classes, padded))
        stacked: np.ndarray = stack(weights, self._mesh)
        return stacked

    def train(self, directory: epath.Path) -> list[Trained]:
        """Trains the runs, from their checkpoint in the directory if there is one."""
        settings, progress = self._settings, self._trainer.progress
        training = Training(
            self._epoch,
            self._epochs,
            self._steps,
            [
                {**run.cell.all_settings, **run.candidate._asdict(), "stage": run.stage}
                for run in self._runs
            ],
            evaluate=None if self._supernet else self._evaluate,
            eval_every=settings.eval_every if settings.protocol == "paper" else 0,
            on_epoch=progress.epoch,
        )
        progress.start(self._runs, self._epochs)
        states = stack([self._fresh(run) for run in self._stacked], self._mesh)
        outcome = training.run(states, directory)
        for i, run in enumerate(self._runs):
            if run.stage == "final" and i not in self._findings and outcome.errors[i] is None:
                self._evaluate(i, outcome.trainable[i])  # done before the sweep was stopped
        return [self._trained(i, outcome) for i in range(len(self._runs))]

    def _fresh(self, run: Run) -> TrialState:
        trainer, cell = self._trainer, run.cell
        classes, padded = self._feed.task(cell.task).num_classes, trainer.padded_classes
        capacity = self._data.images.shape[1]
        if cell.start is None:
            state = self._step.init(cell.seed, classes, padded, trainer.base, capacity=capacity)
            if (dictionary := trainer.dictionary(cell)) is None:
                return state
            trainable = untrained(state.trainable, dictionary)
            return self._step.begin(trainable, capacity)
        start = Start(trainer.model.config, trainer.weights_sha256, classes, padded)
        trainable = start.read(cell.start, cell.method, run.candidate.scale)
        return self._step.begin(trainable, capacity)

    def _hyper(self, run: Run, e: int) -> Hyper:
        """The numbers of a run in epoch e."""
        s = run.cell.settings
        rate = learning_rate(
            e, peak=run.peak_rate, epochs=run.epochs, warmup_epochs=s.warmup_epochs
        )
        rates = (s.dropout_rate or None, s.drop_path_rate or None)  # 0: left out
        numbers = Hyper(rate, run.candidate.weight_decay, run.candidate.scale, *rates)
        if s.consistency:
            numbers = numbers._replace(
                consistency_noise=s.consistency_noise, consistency_weight=s.consistency_weight
            )
        hyper: Hyper = jax.tree.map(np.float32, numbers)
        return hyper._replace(choice=_array(run.choice))

    def _epoch(self, states: TrialState, e: int) -> Stepped:
        start = time.perf_counter()
        if self._settings.augment:
            self._data = self._feed.views(self._runs, e, self._data, self._mesh)
        hypers = stack([self._hyper(run, e) for run in self._stacked], self._mesh)
        trials = Trial(self._data, hypers, self._seeds, self._shared, self._class_weights)
        steps = np.int32(max(self._steps))
        out: Stepped = self._step.program(self._base, states, trials, np.int32(e), steps)
        jax.block_until_ready(out)
        self._seconds["train"] += time.perf_counter() - start
        self._epochs_run += 1
        return out

    def _evaluate(self, i: int, trainable: Trainable) -> float:
        """The accuracy of the i-th run in %, or the measure that candidates are chosen by."""
        start, run = time.perf_counter(), self._runs[i]
        findings = self._trainer.measure(run, trainable, self._trainer.batches(run))
        self._findings[i] = findings
        self._seconds["evaluate"] += time.perf_counter() - start
        score = findings.score(run.cell.settings.select_by if run.stage == "selection" else "")
        if math.isnan(score) and run.stage == "final":
            raise UserError(
                f"Task {run.cell.task}: none of its {findings.num_images} test pictures has a "
                "label, so that no average precision can be measured. Add some, or raise "
                "config.eval_limit."
            )
        return score

    def _trained(self, i: int, outcome: Outcome) -> Trained:
        run = self._runs[i]
        details = {
            # Epochs of the final training that this process ran; others came from a checkpoint.
            "epochs_run": self._epochs_run,
            "stack": {
                "runs": len(self._runs),
                "trials": len(self._stacked),
                "mesh": dict(self._mesh.shape),
            },
            "seconds": {k: v / len(self._runs) for k, v in self._seconds.items()},  # its share
        }
        num_eval = self._findings[i].num_images if i in self._findings else 0
        if not num_eval:  # resumed after its evaluation
            limit = run.cell.settings.eval_limit or None
            num_eval = self._feed.data(run.cell.task).size(run.eval_split, limit)
        return Trained(
            run=run,
            trainable=outcome.trainable[i],
            losses=outcome.losses[i].tolist(),
            accuracies=outcome.accuracies[i].tolist(),
            error=outcome.errors[i],
            num_train=self._num_train[i],
            num_eval=num_eval,
            details=details,
            findings=self._findings.get(i),
        )
