"""One trial's training program: a jitted epoch over a train split that lies on the device.

Everything that differs between the runs of a sweep (data, labels, number of examples and classes,
scale, rates, seed) is an argument, so that one executable serves all tasks. Letters: `n` examples
of the split, `c` classes (padded to the sweep's largest), `d` width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fact_jax.backbone.adaptation import Adaptation, over_last
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT, features
from fact_jax.errors import UserError
from fact_jax.images.normalise import normalise
from fact_jax.training.mesh import trial_sharded
from fact_jax.training.mixing import erase, mix
from fact_jax.training.recipe import PLAIN, Recipe
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Method, SearchMethod

Array = jax.Array | np.ndarray
_MASKED = -1e30  # logit of a class that the task does not have


class Hyper(NamedTuple):
    """Numbers of one run; traced, so that changing them compiles nothing.

    A rate of None gives another program, without dropout or without stochastic depth; without
    dropout it is cheaper. `choice` is what a method's adaptation may depend on besides its factors
    and scale (NOAH's widths); None for most.
    """

    learning_rate: float | jax.Array
    weight_decay: float | jax.Array = 1e-4
    scale: float | jax.Array = 1.0
    dropout_rate: float | jax.Array | None = 0.1
    drop_path_rate: float | jax.Array | None = 0.1
    choice: Any = None


class TrainSet(NamedTuple):
    """A split: images uint8 [n, y, x, 3], labels int32 [n].

    Rows past `num_examples` are padding.
    """

    images: Array
    labels: Array
    num_examples: Array | np.int32
    num_classes: Any  # int32


@flax.struct.dataclass
class TrialState:
    """State of a trial: trained arrays {"factors": ..., "head": {"kernel" [d, c], "bias" [c]}}, and
    the optimiser's moments of them."""

    trainable: dict
    moments: optax.OptState


def init_head(key: jax.Array, width: int, num_classes: int, padded_classes: int) -> dict:
    """PyTorch's Linear default, uniform +-1/sqrt(d); columns past num_classes are zero."""
    key_kernel, key_bias = jax.random.split(key)
    bound, pad = width**-0.5, padded_classes - num_classes
    kernel = uniform(key_kernel, (num_classes, width), bound).T
    bias = uniform(key_bias, (num_classes,), bound)
    return {"kernel": jnp.pad(kernel, ((0, 0), (0, pad))), "bias": jnp.pad(bias, (0, pad))}


def init_trial(
    model: ViT,
    method: Method,
    seed: int,
    num_classes: int,
    padded_classes: int,
    base: dict | None = None,
    recipe: Recipe = PLAIN,
) -> TrialState:
    """Fresh factors, head and optimiser moments of one run; some methods need the `base`."""
    key_factors, key_head = jax.random.split(jax.random.key(seed))
    trainable = {
        "factors": method.init(key_factors, model.config, base),
        "head": init_head(key_head, model.config.width, num_classes, padded_classes),
    }
    return TrialState(trainable, recipe.init(trainable))


def logits_of(head: dict, x: jax.Array, num_classes: int | jax.Array) -> jax.Array:
    """float32 logits [b, c] of features x [b, d]; classes from num_classes on are masked."""
    logits = jnp.matmul(x, head["kernel"], precision="highest")
    logits = logits + over_last(head["bias"], logits)
    real = jnp.arange(logits.shape[-1], dtype=jnp.int32) < num_classes
    return jnp.where(real[None], logits, _MASKED)


def epoch_key(seed: int, epoch: int) -> jax.Array:
    """Key of all randomness of an epoch, so that a resumed run equals an uninterrupted one."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)


def adaptation_of(
    method: Method, factors: dict, config: ViTConfig, scale: Any, choice: Any = None
) -> Adaptation:
    """``method.adaptation``, with the choice if there is one."""
    more = {} if choice is None else {"choice": choice}
    return method.adaptation(factors, config, scale, **more)


def make_epoch(
    model: ViT,
    method: Method,
    normalisation: str,
    batch_size: int,
    mesh: Mesh,
    recipe: Recipe = PLAIN,
    sampled: bool = False,
) -> Callable:
    """The jitted ``epoch(base, states, data, hypers, seeds, number, steps) -> (states, losses)``.

    It trains a stack of independent trials: `states`, `data`, `hypers` and `seeds` have a leading
    axis [t], which is split over the mesh's axis `trial`; `mesh.stack` makes such stacks. All
    randomness of a trial comes from its seed and the epoch's `number`. `steps` is the largest
    number of batches of any trial (`num_steps`); a trial with fewer keeps its state in the other
    steps. `losses` [t, n // batch_size] holds each step's mean cross-entropy, 0 for steps not
    taken. `states` is donated. With `sampled`, every step draws the method's choice anew.
    """

    def loss_fn(trainable, base, images, targets, valid, num_classes, hyper: Hyper, key):
        choice = hyper.choice
        if isinstance(method, SearchMethod) and sampled:
            choice = method.sample(jax.random.fold_in(key, 1), model.config)
        adaptation = adaptation_of(method, trainable["factors"], model.config, hyper.scale, choice)
        rates = {"dropout_rate": hyper.dropout_rate, "drop_path_rate": hyper.drop_path_rate}
        x = features(model, base, images, adaptation, key=key, **rates)
        logits = logits_of(trainable["head"], x, num_classes)
        if recipe.soft:
            losses = optax.softmax_cross_entropy(logits, targets)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.where(valid, losses, 0).sum() / valid.sum().astype(jnp.float32)

    def one_trial(base, state: TrialState, data: TrainSet, hyper: Hyper, seed, number, steps):
        capacity = data.images.shape[0]
        key_order, key_steps = jax.random.split(epoch_key(seed, number))
        draw = jax.random.uniform(key_order, (capacity,), jnp.float32)
        order = jnp.argsort(
            jnp.where(jnp.arange(capacity, dtype=jnp.int32) < data.num_examples, draw, jnp.inf)
        )
        order = jnp.pad(order, (0, max(0, batch_size - capacity)))

        def step(i, carry):
            rows = jax.lax.dynamic_slice(order, (i * batch_size,), (batch_size,))
            images, labels = data.images[rows], data.labels[rows]
            # All rows are valid unless the split is smaller than a batch.
            valid = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32) < data.num_examples
            if mesh.shape["data"] > 1:
                images = jax.lax.with_sharding_constraint(images, PartitionSpec("data"))
            state, losses = carry
            key = jax.random.fold_in(key_steps, i)
            images, targets = normalise(images, normalisation), labels
            if recipe.erasing:
                images = erase(jax.random.fold_in(key, 2), images, recipe.erasing)
            if recipe.soft:
                classes = data.num_classes, state.trainable["head"]["bias"].shape[0]
                shares = recipe.mixup, recipe.cutmix, recipe.label_smoothing
                key_mix = jax.random.fold_in(key, 3)
                images, targets = mix(key_mix, images, labels, valid, *classes, *shares)
            loss, grads = jax.value_and_grad(loss_fn)(
                state.trainable, base, images, targets, valid, data.num_classes, hyper, key
            )
            trainable, moments = recipe.update(
                state.trainable, grads, state.moments, hyper.learning_rate, hyper.weight_decay
            )
            stepped = (TrialState(trainable, moments), losses.at[i].set(loss))
            active = i < jnp.maximum(data.num_examples // batch_size, 1)  # num_steps
            return jax.tree.map(lambda new, old: jnp.where(active, new, old), stepped, carry)

        losses = jnp.zeros((max(capacity // batch_size, 1),), jnp.float32)
        return jax.lax.fori_loop(0, steps, step, (state, losses))

    def epoch(base, states: TrialState, data: TrainSet, hypers: Hyper, seeds, number, steps):
        def trial(state, data, hyper, seed):
            return one_trial(base, state, data, hyper, seed, number, steps)

        if seeds.shape[0] > 1:
            return jax.vmap(trial)(states, data, hypers, seeds)
        alone = jax.tree.map(lambda x: x[0], (states, data, hypers, seeds))
        return jax.tree.map(lambda x: x[None], trial(*alone))

    # Trials are split by hand, so that the compiler cannot make them wait for each other. Their
    # batches are split by the compiler, so that random numbers are those of one device.
    split, whole = PartitionSpec("trial"), PartitionSpec()
    specs = (whole, split, split, split, split, whole, whole)
    if mesh.size > 1:
        epoch = jax.shard_map(
            epoch, mesh=mesh, in_specs=specs, out_specs=split, axis_names={"trial"}, check_vma=False
        )

    # By default XLA orders a step for many CPU cores and keeps a quarter more memory alive.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    saving = on_cpu and model.config.remat != "none"
    return jax.jit(
        epoch,
        in_shardings=[NamedSharding(mesh, spec) for spec in specs],
        out_shardings=trial_sharded(mesh),
        donate_argnums=1,
        compiler_options=options if saving else None,
    )


def alone(epoch: Callable, batch_size: int, mesh: Mesh) -> Callable:
    """``run(base, state, data, hyper, seed, number) -> (state, losses)``: one trial, no axis."""

    def run(base, state: TrialState, data: TrainSet, hyper: Hyper, seed, number):
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], (state, data, hyper, seed))
        stacked = jax.device_put(stacked, trial_sharded(mesh))
        steps = jnp.maximum(data.num_examples // batch_size, 1)  # num_steps, maybe traced
        out = epoch(base, *stacked, number, steps)
        return jax.tree.map(lambda x: x[0], out)

    return run


def num_steps(num_examples: int, batch_size: int) -> int:
    """Number of full batches of an epoch, at least 1; a short last batch is dropped."""
    return max(num_examples // batch_size, 1)


def train_set(
    images: np.ndarray, labels: np.ndarray, num_classes: int, capacity: int | None = None
) -> TrainSet:
    """A split on the host, padded to `capacity` rows."""
    capacity = len(images) if capacity is None else capacity
    pad = capacity - len(images)
    if pad < 0:
        raise UserError(f"The train split has {len(images)} images; capacity is {capacity}.")
    images = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
    return TrainSet(images, np.pad(labels, (0, pad)), np.int32(len(labels)), np.int32(num_classes))


class NonFiniteLoss(UserError):
    """Raised when a loss or a trained number is not finite."""


def check_finite(losses: np.ndarray, trainable: dict, epoch: int, settings: dict) -> None:
    """Raises NonFiniteLoss with the first bad step of an epoch's losses and the settings.

    It checks the trained arrays, too: no loss shows the epoch's last update yet.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(trainable)))
    if finite and not bad.size:
        return
    first = int(bad[0]) if bad.size else len(losses) - 1
    what = f"The loss became {losses[first]}" if bad.size else "A trained number became non-finite"
    text = ", ".join(f"{k}={v}" for k, v in settings.items())
    raise NonFiniteLoss(
        f"{what} at step {epoch * len(losses) + first} (epoch {epoch}). Lower the scale or the "
        f"learning rate, or check the images. It was trained with {text}."
    )
