"""Trains groups of runs: the frozen model, its compiled programs, and the data they share."""

import math
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
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
from fact_jax.sweep.ranks import phases, trained_method
from fact_jax.sweep.runs import Progress, Run, Trained
from fact_jax.sweep.settings import SweepSettings
from fact_jax.sweep.shared import dictionary_for, with_shared
from fact_jax.training.evaluation import Evaluator, Merged
from fact_jax.training.mesh import agree, make_mesh, put, replicated
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Trainable
from fact_jax.tuning import count_parameters
from fact_jax.tuning.method import Base, Factors, Method, SharingMethod


def as_array(architecture: Architecture | None) -> np.ndarray | None:
    """Widths of an architecture as a program takes them."""
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
        settings, config = cells[0].settings, self.model.config
        method = phases(cells[0].method, settings)[0].method  # the largest rank

        def begin(base: Base) -> tuple[Factors, Prompts | None]:
            factors = method.init(jax.random.key(0), config, base)
            return factors, method.adaptation(factors, config).prompts

        factors, prompts = jax.eval_shape(begin, self.base)
        images = max(map(self.feed.capacity, cells)) * (2 if settings.augment else 1)
        per_device = self.sweep.trials_per_device or most_per_device(
            config.replace(image_size=settings.image_size),  # the weights may be of another
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
        self.check_devices(batch_size, size)
        return size

    def check_devices(self, batch_size: int, size: int) -> None:
        """UserError if stacks of this size leave devices idle where several processes need all."""
        devices, used = len(jax.devices()), make_mesh(batch_size, num_trials=size).size
        if used < devices and jax.process_count() > 1:
            raise UserError(
                f"Batches of {batch_size} use {used} of the {devices} devices; with several "
                "processes all are needed. Choose another --config.batch_size."
            )

    def step(self, cell: Cell, mesh: Mesh, sampled: bool, method: Method) -> TrainStep:
        """The training step of a cell with its method, maybe at another rank.

        Equal steps are the same object, with its program.
        """
        settings = cell.settings
        step = TrainStep(
            self.model,
            method,
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
        method = trained_method(
            phases(cell.method, cell.settings), trainable["factors"], self.model.config
        )
        stored = _as_stored(trainable, cell.recipe.bits, classes)
        trained = Merged.of(
            method,
            self.model.config,
            self.on(mesh),
            put(with_shared(stored, self.dictionary(cell)), replicated(mesh)),
            np.float32(run.candidate.scale),
            choice=as_array(run.choice),
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
            measure = run.cell.settings.select_by
            value = self.measure(run, trained.trainable, batches).score(measure)
            if math.isnan(value):
                raise UserError(
                    f"Cell {run.cell.name}: the validation images have no {measure}, which the "
                    "search for an architecture chooses by; give images of several classes, or "
                    "another --config.select_by."
                )
            return value

        return score

    def on(self, mesh: Mesh) -> Base:
        """The frozen weights on a mesh; in one process, meshes of the same devices share a copy."""
        if mesh not in self._bases:
            there = list(self._bases.values()) if jax.process_count() == 1 else []
            self._bases[mesh] = put(there[0] if there else self.base, replicated(mesh))
        return self._bases[mesh]
