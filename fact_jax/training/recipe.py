"""What of a training is part of its program: optimiser, mixing of images, smoothing of labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from fact_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What of a training is part of its program.

    optimizer: 'adamw', or 'sgd' with momentum 0.9, PyTorch's (its weight decay is part of the
      gradient).
    decay_vectors: whether biases, scales and shifts decay; timm's optimiser factory spares them.
    mixup, cutmix: parameters of the two Beta distributions; 0 leaves the thing out.
    label_smoothing, erasing: share of the uniform distribution, probability of random erasing.
    """

    optimizer: str = "adamw"
    decay_vectors: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    erasing: float = 0.0

    def __post_init__(self):
        if self.optimizer not in ("adamw", "sgd"):
            raise UserError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'sgd'.")

    @property
    def soft(self) -> bool:
        """Whether the targets are distributions and not classes."""
        return bool(self.mixup or self.cutmix or self.label_smoothing)

    @property
    def transform(self) -> optax.GradientTransformation:
        """The optimiser without its rate and weight decay."""
        return optax.scale_by_adam() if self.optimizer == "adamw" else optax.trace(0.9)

    def update(
        self, trainable: dict, grads: dict, moments: optax.OptState, rate: Any, decay: Any
    ) -> tuple[dict, optax.OptState]:
        """Trained arrays and moments after one step."""

        def own(keys: Any) -> Any:
            vector = str(keys[-1].key).endswith(("bias", "scale", "shift"))
            return 0.0 if vector and not self.decay_vectors else decay

        coupled = self.optimizer == "sgd"
        if coupled:
            grads = jax.tree_util.tree_map_with_path(
                lambda keys, p, g: g + own(keys) * p, trainable, grads
            )
        updates, moments = self.transform.update(grads, moments)
        trainable = jax.tree_util.tree_map_with_path(
            lambda keys, p, u: p - rate * (u if coupled else u + own(keys) * p), trainable, updates
        )
        return trainable, moments


PLAIN = Recipe()  # FacT's: AdamW on all, cross-entropy, nothing else
