"""A trial: its trained arrays, its data and settings, and its logits.

Letters: `n` examples of the split, `c` classes (padded to the sweep's largest), `d` width.
"""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fact_jax.backbone.adaptation import Adaptation, over_last
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Factors, Method, Scale

Array = jax.Array | np.ndarray
Integer = Array | int | np.int32
Head = dict[str, jax.Array]  # "kernel" [d, c] and "bias" [c]
Trainable = dict[str, dict[str, Any]]  # "factors" and "head"
_MASKED = -1e30  # logit of a class that the task does not have


class Hyper(NamedTuple):
    """Numbers of one run; traced, so that changing them compiles nothing.

    A rate of None gives another program, without dropout or without stochastic depth; without
    dropout it is cheaper. `choice` is what a method's adaptation may depend on besides its factors
    and scale (NOAH's widths); None for most. `consistency_noise` is the deviation of the noise of
    increments, and `consistency_weight` the weight of what it does to the logits; without
    consistency both are None.
    """

    learning_rate: float | jax.Array
    weight_decay: float | jax.Array = 1e-4
    scale: float | jax.Array = 1.0
    dropout_rate: float | jax.Array | None = 0.1
    drop_path_rate: float | jax.Array | None = 0.1
    choice: Any = None
    consistency_noise: float | jax.Array | None = None
    consistency_weight: float | jax.Array | None = None


class TrainSet(NamedTuple):
    """A split: images uint8 [n, y, x, 3], labels int32 [n].

    A multi-label task has labels [n, c], 1 for those that an image has. Rows past `num_examples`
    are padding.
    """

    images: Array
    labels: Array
    num_examples: Integer
    num_classes: Integer


class Trial(NamedTuple):
    """A trial besides its state: its split, its numbers, and the seed of all its randomness.

    `shared` are factors that it computes with and does not train, if there are any.
    `class_weights` float32 [c] weigh the classes in the loss; None: all alike.
    """

    data: TrainSet
    hyper: Hyper
    seed: Integer
    shared: Factors | None = None
    class_weights: Array | None = None


@flax.struct.dataclass
class TrialState:
    """State of a trial: the trained arrays, and the optimiser's moments of them.

    `memory` [n, c] are the logits of each example's last visit, where the recipe compares with
    them.
    """

    trainable: Trainable
    moments: optax.OptState
    memory: jax.Array | None = None


def init_head(key: jax.Array, width: int, num_classes: int, padded_classes: int) -> Head:
    """PyTorch's Linear default, uniform +-1/sqrt(d); columns past num_classes are zero."""
    key_kernel, key_bias = jax.random.split(key)
    bound, pad = width**-0.5, padded_classes - num_classes
    kernel = uniform(key_kernel, (num_classes, width), bound).T
    bias = uniform(key_bias, (num_classes,), bound)
    return {"kernel": jnp.pad(kernel, ((0, 0), (0, pad))), "bias": jnp.pad(bias, (0, pad))}


def logits_of(head: Head, x: jax.Array, num_classes: Integer | None = None) -> jax.Array:
    """float32 logits [b, c] of features x [b, d]; classes from num_classes on are masked."""
    logits = jnp.matmul(x, head["kernel"], precision="highest")
    logits = logits + over_last(head["bias"], logits)
    return logits if num_classes is None else masked(logits, num_classes)


def masked(logits: jax.Array, num_classes: Integer) -> jax.Array:
    """The logits [b, c], with a large negative number for classes from num_classes on."""
    real = jnp.arange(logits.shape[-1], dtype=jnp.int32) < num_classes
    return jnp.where(real[None], logits, _MASKED)


def adaptation_of(
    method: Method, factors: Factors, config: ViTConfig, scale: Scale, choice: Any = None
) -> Adaptation:
    """``method.adaptation``, with the choice if there is one."""
    more = {} if choice is None else {"choice": choice}
    return method.adaptation(factors, config, scale, **more)


def train_set(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    capacity: int | None = None,
    padded_classes: int = 0,
) -> TrainSet:
    """A split on the host, padded to `capacity` rows; labels [n, c] also to `padded_classes`."""
    capacity = len(images) if capacity is None else capacity
    pad = capacity - len(images)
    if pad < 0:
        raise UserError(f"The train split has {len(images)} images; capacity is {capacity}.")
    images = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
    padding = [(0, pad), *[(0, max(padded_classes - num_classes, 0))] * (labels.ndim - 1)]
    return TrainSet(images, np.pad(labels, padding), np.int32(len(labels)), np.int32(num_classes))


class NonFiniteLoss(UserError):
    """Raised when a loss or a trained number is not finite."""
