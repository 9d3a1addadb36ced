"""The interface of a tuning method, and what methods share."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.checks import check_number
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import init_base
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE

Factors = dict[str, jax.Array]
Base = dict[str, Any]  # a ViT's parameters
Scale = float | jax.Array | None  # None: the method's own


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings with two pure functions.

    `scale` is s of FacT, the strength of the increment; methods without one ignore it. It is a
    default: training passes it as a traced number, so that one program serves every scale.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def scale(self) -> float: ...

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """Draws fresh factors, float32.

        Methods that train the ViT's own weights start from `base`, and raise UserError without it.
        """
        ...

    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        """Makes the changes to the ViT that these factors stand for, at a scale (None: its own)."""
        ...


@runtime_checkable
class SharingMethod(Method, Protocol):
    """A method whose large factors many tasks can share, so that a task has only the others.

    The other factors are its cores: its increments are linear in them, and zero if they are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def shared(self) -> tuple[str, ...]: ...


@runtime_checkable
class ChainMethod(Method, Protocol):
    """A method whose increments are products of all its factors, one after the other.

    `chain` names the factors in the order of the product, which is a tensor-train: the first is a
    matrix [d, r], the last one [r, e], and those between are stacks of matrices [n, r, r].
    """

    rank: int
    chain: ClassVar[tuple[str, ...]]


@runtime_checkable
class SearchMethod(Method, Protocol):
    """A method whose architecture, widths [families, l], is searched for.

    Its adaptation takes one as `choice`; its settings say how it is trained and searched
    (`sweep.evolution`).
    """

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
        """Numbers of an architecture, as `limit` counts them."""
        ...

    def subnet(self, factors: Factors, choice: Any) -> tuple[Method, Factors]:
        """One architecture as a method, and its factors."""
        ...


A = TypeVar("A", bound=Callable[..., Adaptation])


def checked(adaptation: A) -> A:
    """Decorates a method's `adaptation`, to refuse factors of other settings or of another ViT.

    Raises:
      UserError: a name, shape or type is not that of ``method.init(key, config)``, or the scale is
        neither a finite number nor a traced one.
    """

    @functools.wraps(adaptation)
    def with_check(
        self: Any, factors: Any, config: ViTConfig, scale: Any = None, **more: Any
    ) -> Adaptation:
        _check_factors(self, factors, config)
        check_number("scale", scale, SCALE)
        return adaptation(self, factors, config, scale, **more)

    return cast(A, with_check)


def _check_factors(method: Method, factors: Any, config: ViTConfig) -> None:
    what = f"{type(method).__name__} on a ViT of {config.depth} blocks of width {config.width}"
    if not isinstance(factors, Mapping):
        raise UserError(
            f"factors is of type {type(factors).__name__}; {what} expects a dict of arrays, as "
            "method.init(key, config) gives it."
        )
    expected = factor_shapes(method, config)
    faults = [f"{name!r} is missing" for name in expected if name not in factors]
    faults += [f"{name!r} is unknown" for name in factors if name not in expected]
    for name in expected.keys() & factors.keys():
        shape = tuple(getattr(factors[name], "shape", ()))
        dtype = getattr(factors[name], "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            kind = dtype or type(factors[name]).__name__
            faults.append(f"{name!r} is of type {kind}, expected float32")
        elif shape != expected[name]:
            faults.append(f"{name!r} has shape {shape}, expected {expected[name]}")
    if faults:
        raise UserError(
            f"The factors are not those of {what}: {'; '.join(faults[:3])}. Use the method, its "
            "settings and the model that they were trained with."
        )


def factor_shapes(method: Method, config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of a method's factors."""
    return _shapes(cast(Hashable, method), config)


@functools.lru_cache(maxsize=256)
def _shapes(method: Any, config: ViTConfig) -> dict[str, tuple[int, ...]]:
    factors = jax.eval_shape(
        lambda: method.init(jax.random.key(0), config, init_base(config, jax.random.key(0)))
    )
    return {name: tuple(leaf.shape) for name, leaf in factors.items()}


def adaptation_shapes(method: Method, config: ViTConfig) -> Adaptation:
    """The shapes of a method's adaptation. Raises UserError for a ViT that it cannot adapt."""
    return _adaptation_shapes(cast(Hashable, method), config)


@functools.lru_cache(maxsize=256)
def _adaptation_shapes(method: Any, config: ViTConfig) -> Adaptation:
    shapes = factor_shapes(method, config)
    factors = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    adaptation: Adaptation = jax.eval_shape(lambda given: method.adaptation(given, config), factors)
    return adaptation


def count_parameters(tree: Any) -> int:
    """Numbers in a pytree of arrays or shape structs."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def from_base(base: Base | None, wanted: Callable[[str], bool]) -> Factors:
    """The base's parameters whose names, joined with "/", are wanted, float32."""
    if base is None:
        raise UserError("This method trains the ViT's own weights: give init() the base, too.")
    leaves = jax.tree_util.tree_leaves_with_path(base)
    named = {"/".join(str(k.key) for k in keys): leaf for keys, leaf in leaves}
    return {name: leaf.astype("float32") for name, leaf in named.items() if wanted(name)}
