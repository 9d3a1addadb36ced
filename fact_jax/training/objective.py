"""The loss of a batch: cross-entropy with the noise of training, and the consistency of logits."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fact_jax.algebra.quantise import rounded
from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.noise import IncrementNoise, takes_noise
from fact_jax.backbone.vit import Rates, ViT, features
from fact_jax.errors import UserError
from fact_jax.training.consistency import difference, last_visit
from fact_jax.training.losses import multi_label_loss, weighted_mean
from fact_jax.training.recipe import Recipe
from fact_jax.training.trial import Head, Trainable, Trial, adaptation_of, logits_of, masked
from fact_jax.tuning.method import Base, Method, SearchMethod

# What a step's key is folded with for everything that draws besides the network's own noise.
CHOICE, ERASING, MIXING, CONSISTENCY = 1, 2, 3, 4


class Batch(NamedTuple):
    """Normalised images [b, y, x, 3], targets, and which rows are examples of the split, bool [b].

    Targets are classes int32 [b], or distributions [b, c] where the recipe asks for them, or the
    labels [b, c] of a multi-label task.
    """

    images: jax.Array
    targets: jax.Array
    valid: jax.Array

    def half(self) -> "Batch":
        """The first half of the batch."""
        half: Batch = jax.tree.map(lambda x: x[: self.valid.shape[0] // 2], self)
        return half


class Visit(NamedTuple):
    """A step's place in the training, on which its consistency depends besides the batch.

    Attributes:
      number: of the step, counted from the epoch's number; 'lazy' acts where it is even.
      rows: the places of the batch's images in the split, int32 [b].
      memory: logits [n, c] of each example's last visit, for 'fast' alone.
    """

    number: jax.Array
    rows: jax.Array
    memory: jax.Array | None = None


class _Passing(NamedTuple):
    """The arguments that the passes of a step have in common besides the images."""

    head: Head
    adaptation: Adaptation
    base: Base
    trial: Trial
    key: jax.Array  # of dropout, stochastic depth and the increments' noise


def check_noise(adaptation: Adaptation, method: Method) -> None:
    """Raises UserError for an adaptation without anything that the consistency's noise changes."""
    if not takes_noise(adaptation):
        raise UserError(
            f"{type(method).__name__} has neither low-rank increments nor bottlenecks, which "
            "consistency multiplies with noise. Set consistency to '' for it."
        )


def check_halves(consistency: str, batch_size: int) -> None:
    """Raises UserError for batches that cannot be halved, if the consistency halves them."""
    if consistency == "lazy" and batch_size < 2:
        raise UserError(
            "consistency 'lazy' trains every second step on half a batch, and the batch size is "
            f"{batch_size}. Set a batch size of 2 or more, or consistency to 'full'."
        )


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that a training step of one trial lowers.

    Attributes:
      sampled: whether each step draws the method's choice anew.
      multi_label: whether images have any number of labels, each a decision of its own.
    """

    model: ViT
    method: Method
    recipe: Recipe
    sampled: bool = False
    multi_label: bool = False

    def loss(
        self, trainable: Trainable, base: Base, batch: Batch, trial: Trial, key: jax.Array
    ) -> jax.Array:
        """Mean cross-entropy of the valid rows, with the noise of training."""
        passing = self._passing(trainable, base, trial, key)
        return self._cross_entropy(self._logits(passing, batch.images), batch, trial)

    def consistent_loss(
        self,
        trainable: Trainable,
        base: Base,
        batch: Batch,
        trial: Trial,
        key: jax.Array,
        visit: Visit,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The cross-entropy under noise of the increments, plus the consistency's weighted share.

        Returns:
          The loss, and with 'fast' the logits to remember of this batch.
        """
        passing = self._passing(trainable, base, trial, key)
        check_noise(passing.adaptation, self.method)
        if self.recipe.consistency == "fast":
            logits = self._logits(passing, batch.images, self._noise_key(key))
            assert visit.memory is not None
            last = last_visit(visit.memory, visit.rows, logits)
            return self._total(logits, last, batch, trial), jax.lax.stop_gradient(logits)
        if self.recipe.consistency == "full":
            return self._two_passes(passing, batch), None
        check_halves(self.recipe.consistency, batch.valid.shape[0])
        even = visit.number % 2 == 0
        return jax.lax.cond(even, self._half, self._one_pass, passing, batch), None

    def _two_passes(self, passing: "_Passing", batch: Batch) -> jax.Array:
        """The loss of two passes that differ in the noise of the increments alone."""
        keys = jax.random.split(self._noise_key(passing.key), 2)
        # What the noise does not reach, such as the first block, is computed once.
        one = functools.partial(self._logits, passing, batch.images)
        logits, others = jax.vmap(one)(keys)
        return self._total(logits, others, batch, passing.trial)

    def _half(self, passing: "_Passing", batch: Batch) -> jax.Array:
        return self._two_passes(passing, batch.half())

    def _one_pass(self, passing: "_Passing", batch: Batch) -> jax.Array:
        """The cross-entropy alone, of a pass with noise."""
        logits = self._logits(passing, batch.images, self._noise_key(passing.key))
        return self._cross_entropy(logits, batch, passing.trial)

    def _noise_key(self, key: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, CONSISTENCY)

    def _total(self, logits: jax.Array, others: jax.Array, batch: Batch, trial: Trial) -> jax.Array:
        """Cross-entropy of the first logits, and their distance to the others."""
        gap = difference(logits, others, batch.valid, trial.data.num_classes)
        weight = jnp.asarray(trial.hyper.consistency_weight, jnp.float32)
        return self._cross_entropy(logits, batch, trial) + weight * gap

    def _passing(
        self, trainable: Trainable, base: Base, trial: Trial, key: jax.Array
    ) -> "_Passing":
        """Makes the arguments that all passes of this step have in common."""
        hyper, config = trial.hyper, self.model.config
        if self.recipe.bits is not None:
            trainable = rounded(trainable, self.recipe.bits)
        choice = hyper.choice
        if self.sampled and isinstance(self.method, SearchMethod):
            choice = self.method.sample(jax.random.fold_in(key, CHOICE), config)
        factors = {**(trial.shared or {}), **trainable["factors"]}
        adaptation = adaptation_of(self.method, factors, config, hyper.scale, choice)
        return _Passing(trainable["head"], adaptation, base, trial, key)

    def _logits(
        self, passing: "_Passing", images: jax.Array, noise_key: jax.Array | None = None
    ) -> jax.Array:
        """Logits [b, c], with noise of the increments if there is a key for it."""
        head, adaptation, base, trial, key = passing
        hyper, classes = trial.hyper, trial.data.num_classes
        rates: Rates = {"dropout_rate": hyper.dropout_rate, "drop_path_rate": hyper.drop_path_rate}
        if noise_key is None:
            x = features(self.model, base, images, adaptation, key=key, **rates)
            return logits_of(head, x, classes)
        noise = IncrementNoise(noise_key, jnp.asarray(hyper.consistency_noise, jnp.float32))
        rates["increment_noise"] = noise
        x = features(self.model, base, images, adaptation, key=key, **rates)
        # The head is trained as a whole: all that it puts out is its increment.
        return masked(noise.of_head(self.model.config.depth).times(logits_of(head, x)), classes)

    def _cross_entropy(self, logits: jax.Array, batch: Batch, trial: Trial) -> jax.Array:
        weights, valid = trial.class_weights, batch.valid
        if self.multi_label:
            return multi_label_loss(logits, batch.targets, valid, trial.data.num_classes, weights)
        if self.recipe.soft:
            losses = optax.softmax_cross_entropy(logits, batch.targets)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        if weights is not None:
            return weighted_mean(losses, batch.targets, valid, weights)
        return jnp.where(valid, losses, 0).sum() / valid.sum().astype(jnp.float32)
