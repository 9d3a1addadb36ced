"""Rounding of a task's increments to fewer numbers, and conversion from one method to another."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from fact_jax.algebra.cp import round_polyadic
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.lora import by_site, round_lora
from fact_jax.algebra.tucker import Tucker, round_cores, round_tucker
from fact_jax.algebra.weighted import ridged, round_weighted
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning import METHODS, FacTCP, FacTTK, FacTTT, LoRA
from fact_jax.tuning.method import Factors, Method
from fact_jax.tuning.slices import slices_per_block


class Rounded(NamedTuple):
    """Factors that stand for given increments, and how well.

    Attributes:
      method: the method with its rank and scale.
      factors: the method's arrays, float32.
      error: Frobenius norm of the difference over that of the increments, of the float32 factors.
      bound: what the error cannot exceed but for float32's rounding; None where theory says
        nothing.
      weighted_error: the same of what the slices put out, if their inputs were given.
    """

    method: Method
    factors: Factors
    error: float
    bound: float | None
    weighted_error: float | None = None


_Arrays = dict[str, np.ndarray]


def _tensor_train(
    method: FacTTT, increments: Increments, config: ViTConfig
) -> tuple[FacTTT, _Arrays, float]:
    rounded = round_tucker(Joint.of(increments), method.rank)
    return method, _train_factors(rounded, method.scale, config), rounded.bound


def _train_factors(rounded: Tucker, scale: float, config: ViTConfig) -> _Arrays:
    cores = rounded.cores.reshape(config.depth, slices_per_block(config), *rounded.cores.shape[1:])
    return {"U": rounded.u, "S": cores, "V": rounded.v / scale}


def _lora(method: LoRA, increments: Increments, config: ViTConfig) -> tuple[LoRA, _Arrays, float]:
    factors, lost = round_lora(increments, method.rank, config)
    sites = ",".join(name.removeprefix("A_") for name in factors if name.startswith("A_"))
    method = dataclasses.replace(method, sites=sites, shared_input=False)
    return method, {k: v / method.scale if k[0] == "B" else v for k, v in factors.items()}, lost


def _tucker(
    method: FacTTK, increments: Increments, config: ViTConfig
) -> tuple[FacTTK, _Arrays, float]:
    rounded = round_cores(Joint.of(increments), method.rank, order_of_cores(method, config))
    u, c, p, v, bound = rounded
    return method, {"U": u, "C": c, "P": p, "V": v / method.scale}, bound


def order_of_cores(method: FacTTK, config: ViTConfig) -> Int[np.ndarray, " m"]:
    """The order of `tucker.round_cores` in which a block's slices take their numbers."""
    shape = (1, slices_per_block(config), method.rank, method.rank)
    order = method.of_slices(jnp.arange(np.prod(shape), dtype=jnp.int32).reshape(shape))
    return np.asarray(order).ravel()


def _polyadic(
    method: FacTCP, increments: Increments, config: ViTConfig
) -> tuple[FacTCP, _Arrays, None]:
    u, c, v = round_polyadic(Joint.of(increments), method.rank)
    c = c.reshape(config.depth, slices_per_block(config), -1)
    return method, {"U": u, "C": c, "V": v / method.scale}, None


def _joint_rank(increments: Increments, config: ViTConfig) -> int:
    joint = Joint.of(increments)
    return max(len(joint.left_values), len(joint.right_values))


def _tucker_rank(increments: Increments, config: ViTConfig) -> int:
    return max(_joint_rank(increments, config), len(increments.s))


def _polyadic_rank(increments: Increments, config: ViTConfig) -> int:
    joint = Joint.of(increments)
    sizes = sorted((len(increments.s), len(joint.left_values), len(joint.right_values)))
    return sizes[0] * sizes[1]


class _Form(NamedTuple):
    """How increments take a method's form.

    Attributes:
      fit: gives the method, its arrays, and the bound of the error, a Frobenius norm.
      full_rank: the rank that holds given increments exactly.
    """

    fit: Callable[[Any, Increments, ViTConfig], tuple[Any, _Arrays, float | None]]
    full_rank: Callable[[Increments, ViTConfig], int]


_FORMS: dict[type, _Form] = {
    FacTTT: _Form(_tensor_train, _joint_rank),
    FacTTK: _Form(_tucker, _tucker_rank),
    FacTCP: _Form(_polyadic, _polyadic_rank),
    LoRA: _Form(_lora, lambda *of: max(site.s.shape[1] for site in by_site(*of).values())),
}


NAMES = tuple(name for name, kind in METHODS.items() if kind in _FORMS)
"""Names of the methods that increments can be rounded to."""


def has_form(method: Method) -> bool:
    """Whether increments can be rounded to a method of this kind."""
    return type(method) in _FORMS


def _form(method: Method) -> _Form:
    form = _FORMS.get(type(method))
    if form is None:
        names = ", ".join(kind.__name__ for kind in _FORMS)
        raise UserError(
            f"Increments cannot be rounded to {type(method).__name__}; choose one of {names}."
        )
    return form


def round_to(
    method: Method,
    increments: Increments,
    config: ViTConfig,
    moments: Float64[np.ndarray, "n p p"] | None = None,
) -> Rounded:
    """Finds factors of a method whose increments come near to given ones.

    Args:
      method: what to round or convert to, with its rank and scale: `FacTTT`, `FacTTK`, `FacTCP` or
        `LoRA`. LoRA's sites become those that the increments change.
      increments: the increments of a trained task, ``Increments.of(method, factors, config)``.
      config: the ViT's.
      moments: of the slices' inputs in the directions ``Joint.of(increments).left``, as
        `moments.second_moments` gives them. With them, what the slices put out is kept, and for
        `FacTTT` alone.

    Raises:
      UserError: the method is another one or its scale is 0, or there are no increments.
    """
    form = _form(method)
    if not increments.norm:
        raise UserError("The increments are all zero, so there is nothing to round.")
    if not method.scale:
        raise UserError("The scale to round to is 0; give the method another one.")
    if moments is None:
        method, arrays, bound = form.fit(method, increments, config)
    elif isinstance(method, FacTTT):
        bound, weighted = None, round_weighted(Joint.of(increments), method.rank, moments)
        arrays = _train_factors(weighted, method.scale, config)
    else:
        raise UserError(
            f"Rounding to {type(method).__name__} takes no account of the inputs, only that to "
            "FacTTT does. Leave out the images, or convert to FacT-TT."
        )
    factors = {name: jnp.asarray(value, jnp.float32) for name, value in arrays.items()}
    bound = None if bound is None else bound / increments.norm
    return measured(Rounded(method, factors, 0.0, bound), increments, config, moments)


def measured(
    rounded: Rounded,
    increments: Increments,
    config: ViTConfig,
    moments: Float64[np.ndarray, "n p p"] | None = None,
) -> Rounded:
    """The same factors, with the errors that they have for given increments, as in `round_to`."""
    difference = increments - Increments.of(rounded.method, rounded.factors, config)
    weighted = None
    if moments is not None:
        joint = Joint.of(increments)
        weighted = _output_norm(difference, joint, moments) / _output_norm(
            increments, joint, moments
        )
    return rounded._replace(error=difference.norm / increments.norm, weighted_error=weighted)


def _output_norm(
    increments: Increments, joint: Joint, moments: Float64[np.ndarray, "n p p"]
) -> float:
    """Root of the mean square of what increments within the joint spaces put out, over slices."""
    a = joint.left.T @ (increments.u * increments.s[:, None])
    return float(np.sqrt((a * (ridged(moments) @ a)).sum()))


def full_rank(method: Method, increments: Increments, config: ViTConfig) -> int:
    """The smallest rank at which a method holds given increments exactly."""
    return _form(method).full_rank(increments, config)


def round_within(
    method: Any,
    increments: Increments,
    config: ViTConfig,
    error: float,
    moments: Float64[np.ndarray, "n p p"] | None = None,
    stored: Callable[[Rounded], Rounded] = lambda rounded: rounded,
) -> Rounded:
    """Rounds to the smallest rank whose relative error is at most `error`.

    With moments this is the weighted error, as in `round_to`. It is that of ``stored(rounded)``,
    which may have fewer bits; what is returned has float32.
    The rank is doubled until the error is small enough, and then halved in.

    Raises:
      UserError: no rank keeps the error, as where it is below float32's rounding.
    """

    def at(rank: int) -> Rounded:
        return round_to(dataclasses.replace(method, rank=rank), increments, config, moments)

    most, low, high = full_rank(method, increments, config), 0, 1
    while (smallest := minimised(stored(best := at(high)))) > error:
        if high == most:
            raise UserError(
                f"No rank has an error of {error:g} or less: the full rank, {high}, has "
                f"{smallest:.2g}."
            )
        low, high = high, min(2 * high, most)
    while high - low > 1:
        rank = (low + high) // 2
        rounded = at(rank)
        if minimised(stored(rounded)) <= error:
            high, best = rank, rounded
        else:
            low = rank
    return best


def minimised(rounded: Rounded) -> float:
    """The error that rounding has kept small."""
    return rounded.error if rounded.weighted_error is None else rounded.weighted_error
