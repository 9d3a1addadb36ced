"""What a tuning method is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError

Factors = dict[str, jax.Array]


class Method(Protocol):
    """A frozen dataclass of settings with two pure functions.

    `scale` is s of FacT, the strength of the increment; methods without one ignore it. It is a
    default: training passes it as a traced number, so that one program serves every scale.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def scale(self) -> float: ...

    def init(self, key: jax.Array, config: ViTConfig, base: dict | None = None) -> Factors:
        """Fresh factors, float32. Methods that train the ViT's own weights start from `base`, and
        raise UserError without it."""
        ...

    def adaptation(
        self, factors: Factors, config: ViTConfig, scale: float | jax.Array | None = None
    ) -> Adaptation:
        """The changes to the ViT that these factors stand for."""
        ...


@runtime_checkable
class SearchMethod(Method, Protocol):
    """A method whose architecture, widths [families, l], is searched for: its adaptation takes one
    as `choice`, and the numbers below say how it is trained and searched (`sweep.evolution`)."""

    families: ClassVar[tuple[str, ...]]
    supernet_epochs: int
    supernet_learning_rate: float
    widths: tuple[int, ...]
    limit: int
    population: int
    parents: int
    mutations: int
    crossovers: int
    generations: int
    mutation_probability: float
    depth_probability: float

    def depths_of(self, config: ViTConfig) -> tuple[int, ...]:
        """Numbers of blocks that a family may take part in."""
        ...

    def sample(self, key: jax.Array, config: ViTConfig) -> jax.Array:
        """A random architecture, inside of `jit`."""
        ...

    def count(self, choice: Any, config: ViTConfig) -> int:
        """Numbers of an architecture, for the limit."""
        ...

    def subnet(self, factors: Factors, choice: Any) -> tuple[Method, Factors]:
        """One architecture as a method of its own."""
        ...


def count_parameters(tree) -> int:
    """Numbers in a pytree of arrays or shape structs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def from_base(base: dict | None, wanted: Callable[[str], bool]) -> Factors:
    """The base's parameters whose names, joined with "/", are wanted, float32."""
    if base is None:
        raise UserError("This method trains the ViT's own weights: give init() the base, too.")
    leaves = jax.tree_util.tree_leaves_with_path(base)
    named = {"/".join(str(k.key) for k in keys): leaf for keys, leaf in leaves}
    return {name: leaf.astype("float32") for name, leaf in named.items() if wanted(name)}
