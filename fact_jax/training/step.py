"""The training program: a jitted epoch of a stack of trials over splits that lie on the device.

Everything that differs between the runs of a sweep (data, labels, number of examples and classes,
scale, rates, seed) is an argument, so that one executable serves all tasks.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fact_jax.backbone.vit import ViT
from fact_jax.errors import UserError
from fact_jax.images.normalise import normalise
from fact_jax.training.consistency import empty_memory, remember
from fact_jax.training.mesh import trial_sharded
from fact_jax.training.mixing import erase, mix, soft_labels, soft_targets
from fact_jax.training.objective import ERASING, MIXING, Batch, Objective, Visit
from fact_jax.training.recipe import PLAIN, Recipe
from fact_jax.training.trial import (
    Hyper,
    Integer,
    Trainable,
    TrainSet,
    Trial,
    TrialState,
    init_head,
)
from fact_jax.tuning.method import Base, Method

TASKS = "tasks"  # the axis of trials that share factors


def epoch_key(seed: Integer, epoch: Integer) -> jax.Array:
    """Key of all randomness of an epoch, so that a resumed run equals an uninterrupted one."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)


Stepped = tuple[TrialState, jax.Array]  # and losses


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A step of one trial, and the epochs made of it. Equal ones compile equal programs.

    Attributes:
      mesh: its axis `trial` splits stacks of trials, its axis `data` splits their batches.
      sampled: whether each step draws the method's choice anew.
      together: names of the factors that all trials of a stack learn together. After each step
        they are the mean of what the trials have made of them.
      multi_label: whether images have any number of labels, each a decision of its own.
    """

    model: ViT
    method: Method
    normalisation: str
    batch_size: int
    mesh: Mesh
    recipe: Recipe = PLAIN
    sampled: bool = False
    together: tuple[str, ...] = ()
    multi_label: bool = False

    def init(
        self,
        seed: int,
        num_classes: int,
        padded_classes: int,
        base: Base | None = None,
        *,
        capacity: int = 0,
    ) -> TrialState:
        """A fresh state of a trial.

        Args:
          seed: of the factors and the head.
          num_classes: of the task.
          padded_classes: columns of the head.
          base: the frozen weights, which some methods need.
          capacity: rows of the train split with its padding; needed for consistency 'fast' alone.
        """
        key_factors, key_head = jax.random.split(jax.random.key(seed))
        config = self.model.config
        trainable = {
            "factors": self.method.init(key_factors, config, base),
            "head": init_head(key_head, config.width, num_classes, padded_classes),
        }
        return self.begin(trainable, capacity)

    def begin(self, trainable: Trainable, capacity: int) -> TrialState:
        """The state before the first step from these trained arrays; `capacity` as in `init`."""
        memory = None
        if self.recipe.consistency == "fast":
            if not capacity:
                raise UserError(
                    "consistency 'fast' keeps logits of each training image: give init() the "
                    "`capacity`, the rows of the train split with its padding."
                )
            memory = empty_memory(capacity, trainable["head"]["bias"].shape[0])
        return TrialState(trainable, self.recipe.init(trainable), memory)

    def num_steps(self, num_examples: Integer) -> jax.Array:
        """Number of full batches of an epoch, at least 1; a short last batch is dropped."""
        return jnp.maximum(num_examples // self.batch_size, 1)

    def order(self, key: jax.Array, data: TrainSet) -> jax.Array:
        """Rows of the split in random order, padding last; at least as many as a batch has."""
        capacity = data.images.shape[0]
        draw = jax.random.uniform(key, (capacity,), jnp.float32)
        real = jnp.arange(capacity, dtype=jnp.int32) < data.num_examples
        order = jnp.argsort(jnp.where(real, draw, jnp.inf))
        return jnp.pad(order, (0, max(0, self.batch_size - capacity)))

    def rows(self, order: jax.Array, start: jax.Array) -> jax.Array:
        """The rows of a batch, of this order from `start` on."""
        return jax.lax.dynamic_slice(order, (start,), (self.batch_size,))

    def batch(self, data: TrainSet, order: jax.Array, i: jax.Array) -> Batch:
        """The i-th batch of this order. All rows are valid unless the split is smaller."""
        start = i * self.batch_size
        rows = self.rows(order, start)
        images, labels = data.images[rows], data.labels[rows]
        valid = start + jnp.arange(self.batch_size, dtype=jnp.int32) < data.num_examples
        if self.mesh.shape["data"] > 1:
            images = jax.lax.with_sharding_constraint(images, PartitionSpec("data"))
        return Batch(normalise(images, self.normalisation), labels, valid)

    def mixed(
        self, batch: Batch, num_classes: Integer, padded_classes: int, key: jax.Array
    ) -> Batch:
        """The batch as the recipe erases, smooths and mixes it."""
        recipe, (images, targets, valid) = self.recipe, batch
        if recipe.erasing:
            images = erase(jax.random.fold_in(key, ERASING), images, recipe.erasing)
        if recipe.soft:
            smoothing = recipe.label_smoothing
            if self.multi_label:
                targets = soft_labels(targets, num_classes, smoothing)
            else:
                targets = soft_targets(targets, valid, num_classes, padded_classes, smoothing)
            key_mix = jax.random.fold_in(key, MIXING)
            images, targets = mix(
                key_mix, images, targets, valid, mixup=recipe.mixup, cutmix=recipe.cutmix
            )
        return batch._replace(images=images, targets=targets)

    @property
    def objective(self) -> Objective:
        """The loss that a step lowers."""
        return Objective(self.model, self.method, self.recipe, self.sampled, self.multi_label)

    def loss(
        self, trainable: Trainable, base: Base, batch: Batch, trial: Trial, key: jax.Array
    ) -> jax.Array:
        """Mean cross-entropy of the valid rows, with the noise of training."""
        return self.objective.loss(trainable, base, batch, trial, key)

    def update(
        self,
        base: Base,
        state: TrialState,
        batch: Batch,
        trial: Trial,
        key: jax.Array,
        visit: Visit | None = None,
    ) -> tuple[TrialState, jax.Array, jax.Array | None]:
        """A step of the optimiser; with a `visit` it also lowers the consistency's loss.

        Returns:
          The state after it, the loss before it, and the logits to remember, if there are any.
        """
        hyper: Hyper = trial.hyper
        logits = None
        if visit is None:
            loss, grads = jax.value_and_grad(self.loss)(state.trainable, base, batch, trial, key)
        else:
            graded = jax.value_and_grad(self.objective.consistent_loss, has_aux=True)
            (loss, logits), grads = graded(state.trainable, base, batch, trial, key, visit)
        trainable, moments = self.recipe.update(
            state.trainable, grads, state.moments, hyper.learning_rate, hyper.weight_decay
        )
        return TrialState(trainable, moments), loss, logits

    def epoch_of_one(
        self, base: Base, state: TrialState, trial: Trial, number: jax.Array, steps: jax.Array
    ) -> Stepped:
        """An epoch of one trial, of `steps` steps; from its own number of steps on it rests."""
        data = trial.data
        key_order, key_steps = jax.random.split(epoch_key(trial.seed, number))
        order = self.order(key_order, data)

        def step(i: jax.Array, carry: Stepped) -> Any:
            state, losses = carry
            key = jax.random.fold_in(key_steps, i)
            padded_classes = state.trainable["head"]["bias"].shape[0]
            batch = self.mixed(self.batch(data, order, i), data.num_classes, padded_classes, key)
            visit, memory = None, state.memory
            if self.recipe.consistency:
                visit = Visit(number + i, self.rows(order, i * self.batch_size), memory)
            state, loss, logits = self.update(base, state, batch, trial, key, visit)
            active = i < self.num_steps(data.num_examples)
            stepped = (state, losses.at[i].set(loss))
            carry = (dataclasses.replace(carry[0], memory=None), carry[1])
            stepped = jax.tree.map(lambda new, old: jnp.where(active, new, old), stepped, carry)
            if visit is not None and memory is not None and logits is not None:
                memory = remember(memory, visit.rows, logits, batch.valid & active)
                stepped = (dataclasses.replace(stepped[0], memory=memory), stepped[1])
            return (self._with_means(stepped[0], active), stepped[1]) if self.together else stepped

        losses = jnp.zeros((max(data.images.shape[0] // self.batch_size, 1),), jnp.float32)
        stepped: Stepped = jax.lax.fori_loop(0, steps, step, (state, losses))
        return stepped

    def _with_means(self, state: TrialState, active: jax.Array) -> TrialState:
        """The state with the means of the shared factors over all trials that made this step."""
        axes = (TASKS, "trial") if self.mesh.size > 1 else TASKS
        count = jax.lax.psum(active.astype(jnp.float32), axes)
        factors = state.trainable["factors"]
        means = {
            name: jax.lax.psum(jnp.where(active, factors[name], 0), axes) / count
            for name in self.together
        }
        trainable = {**state.trainable, "factors": {**factors, **means}}
        return TrialState(trainable, state.moments, state.memory)

    def epoch(
        self, base: Base, states: TrialState, trials: Trial, number: jax.Array, steps: jax.Array
    ) -> Stepped:
        """An epoch of trials with a leading axis [t]."""
        one = functools.partial(self.epoch_of_one, base, number=number, steps=steps)
        stepped: Stepped
        if jnp.shape(trials.seed)[0] > 1 or self.together:
            stepped = jax.vmap(one, axis_name=TASKS)(states, trials)
        else:
            stepped = one(*jax.tree.map(lambda x: x[0], (states, trials)))
            stepped = jax.tree.map(lambda x: x[None], stepped)
        return stepped

    @functools.cached_property
    def program(self) -> jax.stages.Wrapped:
        """The jitted ``program(base, states, trials, number, steps) -> (states, losses)``.

        It trains a stack of independent trials: `states` and `trials` have a leading axis [t],
        which is split over the mesh's axis `trial`; `mesh.stack` makes such stacks. All randomness
        of a trial comes from its seed and the epoch's `number`. `steps` is the largest number of
        batches of any trial (`num_steps`); a trial with fewer keeps its state in the other steps.
        `losses` [t, n // batch_size] holds each step's loss, 0 for steps not taken.
        `states` is donated.
        """
        # Trials are split by hand, so that the compiler cannot make them wait for each other. Their
        # batches are split by the compiler, so that random numbers are those of one device.
        split, whole = PartitionSpec("trial"), PartitionSpec()
        specs = (whole, split, split, whole, whole)
        epoch: Any = self.epoch
        if self.mesh.size > 1:
            epoch = jax.shard_map(
                epoch,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=split,
                axis_names={"trial"},
                check_vma=False,
            )
        # By default XLA orders a step for many CPU cores and keeps a quarter more memory alive.
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        saving = on_cpu and self.model.config.remat != "none"
        return jax.jit(
            epoch,
            in_shardings=[NamedSharding(self.mesh, spec) for spec in specs],
            out_shardings=trial_sharded(self.mesh),
            donate_argnums=1,
            compiler_options=options if saving else None,
        )

    def alone(self, base: Base, state: TrialState, trial: Trial, number: Integer) -> Stepped:
        """An epoch of one trial by the `program`, without the leading axis."""
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, trial))
        states, trials = jax.device_put(stacked, trial_sharded(self.mesh))
        steps = self.num_steps(trial.data.num_examples)  # maybe traced
        stepped: Stepped = self.program(base, states, trials, number, steps)
        stepped = jax.tree.map(lambda x: x[0], stepped)
        return stepped
