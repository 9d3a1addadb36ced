"""Training that begins at large ranks and rounds to smaller ones between epochs.

The last phase is at the method's own rank, so that results and factor files are those of the method
as it is configured.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from fact_jax.algebra.reduction import reduced, reducible
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.sweep.settings import RunSettings
from fact_jax.training.trial import Trainable
from fact_jax.tuning.method import Method, factor_shapes
from fact_jax.tuning.slices import mlp_slices


class Phase(NamedTuple):
    """A part of a training: the epoch with which it begins, and the method at its rank."""

    start: int
    method: Method


def phases(method: Method, settings: RunSettings) -> list[Phase]:
    """The phases of a training, one for most."""
    ranks, starts = settings.start_ranks, (0, *settings.round_epochs)
    larger = [cast(Method, dataclasses.replace(cast(Any, method), rank=rank)) for rank in ranks]
    return [Phase(*each) for each in zip(starts, [*larger, method], strict=True)]


def phase_at(several: Sequence[Phase], epoch: int) -> int:
    """The number of the phase that an epoch belongs to."""
    return max(i for i, phase in enumerate(several) if phase.start <= epoch)


def trained_method(
    several: Sequence[Phase], factors: Mapping[str, Any], config: ViTConfig
) -> Method:
    """The method of the phase that factors are of, by their shapes."""
    if len(several) == 1:
        return several[0].method
    shapes = {name: np.shape(x) for name, x in factors.items()}
    return next(p.method for p in several if factor_shapes(p.method, config) == shapes)


def rounded_to(
    phase: Phase, before: Phase, trainable: Trainable, scale: float, config: ViTConfig
) -> tuple[Trainable, float]:
    """Trained arrays of the phase before at the rank of this one.

    Returns:
      The trained arrays on the host, and the error as a share of the increments. Those of a trial
      that has left the finite numbers are NaN, so that it is found to have failed.
    """
    factors = trainable["factors"]
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(factors)):
        shapes = factor_shapes(phase.method, config)
        lost = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        return {**trainable, "factors": lost}, float("nan")
    method = dataclasses.replace(cast(Any, before.method), scale=scale)
    result = reduced(method, factors, cast(Any, phase.method).rank, config)
    return {**trainable, "factors": jax.tree.map(np.asarray, result.factors)}, result.error


def check_ranks(
    where: str,
    method: Method,
    config: ViTConfig,
    settings: RunSettings,
    grid: Mapping[str, Sequence[float | None]],
) -> None:
    """Raises UserError if a method, called `where` in the config, cannot train at these ranks.

    `grid` has the values of the candidates.
    """
    ranks, epochs = settings.start_ranks, settings.round_epochs
    if len(ranks) != len(epochs):
        raise UserError(
            f"{where}.start_ranks has {len(ranks)} ranks and {where}.round_epochs {len(epochs)} "
            "epochs; expected as many: after each of these epochs the next rank begins, and after "
            "the last one the method's own."
        )
    if not reducible(method):
        raise UserError(
            f"{where}.start_ranks is {ranks}, and {type(method).__name__} cannot be rounded to a "
            "smaller rank while it trains: FacT-TT, FacT-TK, FacT-CP, MetaTT and LoRA with "
            "shared_input=False can. Leave start_ranks empty."
        )
    try:
        mlp_slices(config)
    except UserError as error:
        raise UserError(
            f"{where}.start_ranks is {settings.start_ranks}, and factors are rounded as d x d "
            f"slices of the weights. {error} Leave start_ranks empty."
        ) from None
    rank = cast(Any, method).rank
    every = [*ranks, rank]
    if any(a <= b for a, b in zip(every, every[1:], strict=False)):
        raise UserError(
            f"{where}.start_ranks is {ranks}, and the method's rank is {rank}; expected ranks that "
            "become smaller, all above the method's."
        )
    ends = [0, *epochs, settings.epochs]
    if any(a >= b for a, b in zip(ends, ends[1:], strict=False)):
        raise UserError(
            f"{where}.round_epochs is {epochs}; expected epochs that become larger, from 1 to "
            f"{settings.epochs - 1} in a training of {settings.epochs}. Set {where}.round_epochs, "
            "or train for more epochs."
        )
    for name in ("scale", "learning_rate"):
        if 0 in grid[name]:
            raise UserError(
                f"{where}.start_ranks is set, and {where}.{name} is 0, or one of its candidates: "
                "without increments there is nothing to round. Give larger ones."
            )
    if settings.shared or settings.start_from:
        name = "shared" if settings.shared else "start_from"
        raise UserError(
            f"{where}.start_ranks and {where}.{name} are both set; files have factors of one rank. "
            "Leave one empty."
        )
