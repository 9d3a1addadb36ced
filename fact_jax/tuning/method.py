"""What a tuning method is."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig

Factors = dict[str, jax.Array]


class Method(Protocol):
    """A frozen dataclass of settings with two pure functions.

    `scale` is s of FacT, the strength of the increment; methods without one ignore it. It is a
    default: training passes it as a traced number, so that one program serves every scale.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def scale(self) -> float: ...

    def init(self, key: jax.Array, config: ViTConfig) -> Factors:
        """Fresh factors, float32."""
        ...

    def adaptation(
        self, factors: Factors, config: ViTConfig, scale: float | jax.Array | None = None
    ) -> Adaptation:
        """The changes to the ViT that these factors stand for."""
        ...


def count_parameters(tree) -> int:
    """Numbers in a pytree of arrays or shape structs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
