"""One trial's training program: a jitted epoch over a train split that lies on the device.

Everything that differs between the runs of a sweep (data, labels, number of examples and classes,
scale, rates, seed) is an argument, so that one executable serves all tasks. Letters: `n` examples
of the split, `c` classes (padded to the sweep's largest), `d` width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fact_jax.backbone.vit import ViT, features
from fact_jax.errors import UserError
from fact_jax.training.images import normalise
from fact_jax.training.mesh import batch_sharded, replicated
from fact_jax.tuning.method import Method

_MASKED = -1e30  # logit of a class that the task does not have


class Hyper(NamedTuple):
    """Numbers of one run; traced, so that changing them compiles nothing.

    A rate of None leaves dropout or stochastic depth out of the program: another program, and
    without dropout a cheaper one.
    """

    learning_rate: float | jax.Array
    weight_decay: float | jax.Array = 1e-4
    scale: float | jax.Array = 1.0
    dropout_rate: float | jax.Array | None = 0.1
    drop_path_rate: float | jax.Array | None = 0.1


class TrainSet(NamedTuple):
    """A split on the device: images uint8 [n, y, x, 3], labels int32 [n].

    Rows past `num_examples` are padding.
    """

    images: jax.Array
    labels: jax.Array
    num_examples: int | jax.Array
    num_classes: int | jax.Array


@flax.struct.dataclass
class TrialState:
    """`trainable` holds {"factors": ..., "head": {"kernel" [d, c], "bias" [c]}}."""

    trainable: dict
    moments: optax.OptState


def init_head(key: jax.Array, width: int, num_classes: int, padded_classes: int) -> dict:
    """PyTorch's Linear default, uniform +-1/sqrt(d); columns past num_classes are zero."""
    key_kernel, key_bias = jax.random.split(key)
    bound, pad = width**-0.5, padded_classes - num_classes
    kernel = jax.random.uniform(key_kernel, (num_classes, width), minval=-bound, maxval=bound).T
    bias = jax.random.uniform(key_bias, (num_classes,), minval=-bound, maxval=bound)
    return {"kernel": jnp.pad(kernel, ((0, 0), (0, pad))), "bias": jnp.pad(bias, (0, pad))}


def init_trial(
    model: ViT, method: Method, seed: int, num_classes: int, padded_classes: int
) -> TrialState:
    """Fresh factors, head and optimiser moments of one run."""
    key_factors, key_head = jax.random.split(jax.random.key(seed))
    trainable = {
        "factors": method.init(key_factors, model.config),
        "head": init_head(key_head, model.config.width, num_classes, padded_classes),
    }
    return TrialState(trainable, optax.scale_by_adam().init(trainable))


def logits_of(head: dict, x: jax.Array, num_classes: int | jax.Array) -> jax.Array:
    """float32 logits [b, c] of features x [b, d]; classes from num_classes on are masked."""
    logits = jnp.matmul(x, head["kernel"], precision="highest") + head["bias"]
    return jnp.where(jnp.arange(logits.shape[-1]) < num_classes, logits, _MASKED)


def epoch_key(seed: int, epoch: int) -> jax.Array:
    """All randomness of an epoch comes from here, so that a resumed run equals one that was not."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), epoch)


def make_epoch(
    model: ViT, method: Method, normalisation: str, batch_size: int, mesh: Mesh
) -> Callable:
    """The jitted ``epoch(base, state, data, hyper, key) -> (state, losses)``.

    `losses` [n // batch_size] holds each step's mean cross-entropy, NaN for steps past the last
    full batch (which is dropped). AdamW as in PyTorch: decoupled weight decay times the rate, on
    every trainable array. `state` is donated.
    """

    def loss_fn(trainable, base, images, labels, num_classes, hyper: Hyper, key):
        adaptation = method.adaptation(trainable["factors"], model.config, hyper.scale)
        x = features(
            model, base, images, adaptation, key=key,
            dropout_rate=hyper.dropout_rate, drop_path_rate=hyper.drop_path_rate,
        )  # fmt: skip
        logits = logits_of(trainable["head"], x, num_classes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def epoch(base, state: TrialState, data: TrainSet, hyper: Hyper, key):
        capacity = data.images.shape[0]
        key_order, key_steps = jax.random.split(key)
        draw = jax.random.uniform(key_order, (capacity,))
        order = jnp.argsort(jnp.where(jnp.arange(capacity) < data.num_examples, draw, jnp.inf))

        def step(i, carry):
            state, losses = carry
            rows = jax.lax.dynamic_slice(order, (i * batch_size,), (batch_size,))
            images, labels = jax.lax.with_sharding_constraint(
                (data.images[rows], data.labels[rows]), batch_sharded(mesh)
            )
            loss, grads = jax.value_and_grad(loss_fn)(
                state.trainable, base, normalise(images, normalisation), labels,
                data.num_classes, hyper, jax.random.fold_in(key_steps, i),
            )  # fmt: skip
            updates, moments = optax.scale_by_adam().update(grads, state.moments)
            trainable = jax.tree.map(
                lambda p, u: p - hyper.learning_rate * (u + hyper.weight_decay * p),
                state.trainable,
                updates,
            )
            return TrialState(trainable, moments), losses.at[i].set(loss)

        losses = jnp.full((capacity // batch_size,), jnp.nan)
        return jax.lax.fori_loop(0, data.num_examples // batch_size, step, (state, losses))

    # XLA's CPU code else orders a step for many cores, and keeps a quarter more alive for it.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    saving = on_cpu and model.config.remat != "none"
    return jax.jit(
        epoch,
        donate_argnums=1,
        out_shardings=replicated(mesh),
        compiler_options=options if saving else None,
    )


def put_train_set(
    images: np.ndarray, labels: np.ndarray, num_classes: int, capacity: int, mesh: Mesh
) -> TrainSet:
    """Copies a split to every device of the mesh, padded to `capacity` rows."""
    pad = capacity - len(images)
    if pad < 0:
        raise UserError(f"The train split has {len(images)} images; capacity is {capacity}.")
    images = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
    arrays = (images, np.pad(labels, (0, pad)), np.int32(len(labels)), np.int32(num_classes))
    return TrainSet(*jax.device_put(arrays, replicated(mesh)))


class NonFiniteLoss(UserError):
    """Training left the finite numbers."""


def check_finite(losses: np.ndarray, trainable: dict, epoch: int, settings: dict) -> None:
    """Raises NonFiniteLoss with the first bad step of an epoch's losses and the settings.

    What the epoch's last update made of the trained arrays is checked, too: no loss shows it yet.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(trainable)))
    if finite and not bad.size:
        return
    first = int(bad[0]) if bad.size else len(losses) - 1
    what = f"The loss became {losses[first]}" if bad.size else "A trained number became non-finite"
    text = ", ".join(f"{k}={v}" for k, v in settings.items())
    raise NonFiniteLoss(
        f"{what} at step {epoch * len(losses) + first} (epoch {epoch}) with {text}. Lower the "
        "scale or the learning rate, or check the images."
    )
