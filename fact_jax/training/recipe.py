"""The recipe of a training's program: optimiser, mixing of images, smoothing of labels."""

import dataclasses
import re
from typing import Any

import jax
import optax

from fact_jax.algebra.quantise import BITS, Bits
from fact_jax.errors import UserError
from fact_jax.ranges import SHARE, Flag, OneOf, Real, check_fields, setting

OPTIMIZERS = ("adamw", "sgd")
# 'full': two passes in each step. 'lazy': two passes of half the batch in every second step.
# 'fast': one pass, compared with the logits of the example's last visit.
CONSISTENCIES = ("full", "fast", "lazy")
BETA = Real(0, 1000)  # past it every image is mixed half and half


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Choices of a training that are part of its program.

    optimizer: 'adamw', or 'sgd' with momentum 0.9, PyTorch's (its weight decay is part of the
      gradient).
    decay_vectors: whether biases, scales, shifts and DoRA's norms decay; timm's optimiser factory
      spares them.
    mixup, cutmix: parameters of the two Beta distributions; 0 switches the mixing off.
    label_smoothing: share of the uniform distribution in a target.
    erasing: probability that a box of an image is erased.
    factor_bits, head_bits: bits a number of the factors and of the head's kernel, if they are
      trained for a small file: each step computes with the quantised numbers. 0: float32, or 16
      bits if the other is set.
    consistency: '' for none, or one of CONSISTENCIES: logits under two draws of
      noise of the increments shall agree, as in PACE.
    """

    optimizer: str = setting("adamw", OneOf(OPTIMIZERS))
    decay_vectors: bool = setting(True, Flag())
    mixup: float = setting(0.0, BETA)
    cutmix: float = setting(0.0, BETA)
    label_smoothing: float = setting(0.0, SHARE)
    erasing: float = setting(0.0, Real(0, 1))
    factor_bits: int = setting(0, OneOf((0, *BITS)))
    head_bits: int = setting(0, OneOf((0, *BITS)))
    consistency: str = setting("", OneOf(("", *CONSISTENCIES)))

    def __post_init__(self) -> None:
        check_fields(self)
        check_mixing(self.consistency, self.mixup, self.cutmix)

    @property
    def bits(self) -> Bits | None:
        """Bits a number of what is trained; None for float32."""
        if not (self.factor_bits or self.head_bits):
            return None
        return Bits(self.factor_bits or 16, self.head_bits or 16)

    @property
    def soft(self) -> bool:
        """Whether the targets are distributions instead of classes."""
        return bool(self.mixup or self.cutmix or self.label_smoothing)

    def optimiser(self, rate: Any, decay: Any) -> optax.GradientTransformation:
        """The optax transformation at this learning rate and weight decay, which may be traced."""
        mask = None if self.decay_vectors else _matrices
        if self.optimizer == "adamw":
            return optax.adamw(rate, weight_decay=decay, mask=mask)
        return optax.chain(optax.add_decayed_weights(decay, mask), optax.sgd(rate, momentum=0.9))

    def init(self, trainable: dict[str, Any]) -> optax.OptState:
        """Moments before the first step; they depend on neither the rate nor the decay."""
        return self.optimiser(0.0, 0.0).init(trainable)

    def update(
        self,
        trainable: dict[str, Any],
        grads: dict[str, Any],
        moments: optax.OptState,
        rate: Any,
        decay: Any,
    ) -> tuple[dict[str, Any], optax.OptState]:
        """Trained arrays and moments after one step."""
        # optax's Adam raises a float to an integer power: strict promotion refuses that, and x64
        # makes it float64.
        with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
            updates, moments = self.optimiser(rate, decay).update(grads, moments, trainable)
        trained: dict[str, Any] = optax.apply_updates(trainable, updates)
        return trained, moments


def check_mixing(consistency: str, mixup: float, cutmix: float) -> None:
    """Raises UserError for mixed images under a consistency that follows each image."""
    if consistency == "fast" and (mixup or cutmix):
        name, value = ("mixup", mixup) if mixup else ("cutmix", cutmix)
        raise UserError(
            "consistency 'fast' compares an image with its last visit, and a mixed image has "
            f"none: {name} is {value:g}. Set mixup and cutmix to 0, or consistency to 'full'."
        )


def _matrices(trainable: dict[str, Any]) -> Any:
    """Mask of the leaves that decay if vectors do not: all but biases, scales, shifts and norms."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: _VECTORS.isdisjoint(re.split("[/_]", keys[-1].key)), trainable
    )


# Words in the names of factors and base weights that do not decay if vectors do not.
_VECTORS = {"bias", "scale", "shift", "norms"}


PLAIN = Recipe()  # FacT's: AdamW on all, cross-entropy, nothing else
