"""Arithmetic of tasks: sums, means and merges of increments, without a d x d matrix.

Increments add up and scale as they are (``a + b``, ``0.5 * a``, ``-a``); the functions here are the
named forms. All give `Increments` of a larger rank, which `rounding.round_to` brings back to that
of a method:

    task = round_to(FacTTT(rank=16), average([a, b]), config)

Letters in shapes: `t` tasks, `n` slices, `d` width, `p` and `q` dimensions of the spaces that all
tasks share, `r` rank.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from fact_jax.algebra.increments import Increments, Joint, side_by_side, total
from fact_jax.algebra.tucker import round_tucker
from fact_jax.errors import UserError
from fact_jax.ranges import SHARE, Each, Real, check


def average(several: Sequence[Increments], weights: Sequence[float] | None = None) -> Increments:
    """The weighted mean of increments.

    Args:
      several: increments of one ViT.
      weights: one number each, whose sum is not 0; they are divided by it. None: all equal.

    Raises:
      UserError: there are no increments, or the weights do not fit.
    """
    _check_some(several)
    weights = [1.0] * len(several) if weights is None else list(weights)
    check("weights", weights, Each(Real()))
    size = sum(map(abs, weights))
    if len(weights) != len(several) or abs(sum(weights)) <= 1e-9 * size:
        raise UserError(
            f"weights are {weights}; expected one for each of {len(several)} tasks, with a sum "
            "that is not 0."
        )
    share = 1 / sum(weights)
    return total([weight * share * one for weight, one in zip(weights, several, strict=True)])


def interpolate(start: Increments, end: Increments, at: float) -> Increments:
    """``(1 - at) * start + at * end``; outside of 0 to 1 it goes on in the same direction."""
    check("at", at, Real())
    return total([(1 - at) * start, at * end])


class Cores(NamedTuple):
    """Increments of several tasks in the spaces that they share, ``left @ cores[t, i] @ right``.

    Attributes:
      left: [d, p], orthonormal columns.
      cores: [t, n, p, q].
      right: [q, d], orthonormal rows.
    """

    left: Float64[np.ndarray, "d p"]
    cores: Float64[np.ndarray, "t n p q"]
    right: Float64[np.ndarray, "q d"]

    @classmethod
    def of(cls, several: Sequence[Increments], rank: int | None = None) -> "Cores":
        """The cores of tasks, in the singular vectors of all their slices side by side.

        Args:
          several: increments of one ViT.
          rank: the spaces' dimension, by `round_tucker`; None keeps all directions. FacT's tasks of
            rank r have at most t r. LoRA's have up to d, where cores are as large as the layers:
            give a rank.
        """
        _check_some(several)
        together = side_by_side(several)
        joint = Joint.of(together)
        if rank is not None:
            rounded = round_tucker(joint, min(rank, max(joint.a.shape[1], joint.b.shape[2])))
            left, cores, right, _ = rounded
            p, q = joint.a.shape[1], joint.b.shape[2]  # zeros beyond them would count in a density
            left, cores, right = left[:, :p], cores[:, :p, :q], right[:q]
        else:
            left, cores, right = joint.left, joint.a @ joint.b, joint.right
        return cls(left, cores.reshape(len(several), -1, *cores.shape[1:]), right)

    def increments(self, merged: Float64[np.ndarray, "n p q"]) -> Increments:
        """The increments whose cores are these."""
        n, d = len(merged), len(self.left)
        right = np.broadcast_to(self.right, (n, *self.right.shape))
        return Increments.from_pairs((self.left @ merged).reshape(n, d, -1), right)


def ties(
    several: Sequence[Increments],
    density: float = 0.2,
    scale: float = 1.0,
    rank: int | None = None,
) -> Increments:
    """TIES: trims small numbers, elects a sign for each place, and averages who agrees with it.

    Source: Yadav et al., "TIES-Merging", NeurIPS 2023, in the order of its algorithm 1; not
    compared with its authors' code. The paper's numbers are the entries of the weights.
    Here they are those of the tasks' cores in the singular vectors of all tasks together, for the
    whole net, as KnOTS (Stoica et al., 2024) merges LoRAs in a common basis. So nothing of size
    d x d appears, and the result does not depend on how a task's factors are written; it differs
    from TIES on weights.

    Args:
      several: increments of one ViT.
      density: share of a task's numbers that stay, the largest; the paper has 0.2.
      scale: lambda, which multiplies the result.
      rank: see `Cores.of`.

    Raises:
      UserError: there are no increments, or a number is outside of its range.
    """
    check("density", density, Real(0, 1, above=True))
    check("scale", scale, Real())
    shared = Cores.of(several, rank)
    numbers = np.stack([_largest(task, density) for task in shared.cores])
    elected = np.sign(numbers.sum(axis=0))
    agrees = (np.sign(numbers) == elected) & (numbers != 0)
    count = np.maximum(agrees.sum(axis=0), 1)
    return scale * shared.increments((numbers * agrees).sum(axis=0) / count)


def dare(increments: Increments, drop: float, seed: int) -> Increments:
    """DARE: drops numbers at random and divides the others by the share that stays.

    Source: Yu et al., "Language Models are Super Mario", ICML 2024, section 3; not compared
    with its authors' code. The paper drops entries of the weights. Here the numbers are those of
    the cores in the increments' own singular vectors, so that the mean over seeds is the increments
    themselves, as in the paper. Add up or merge several tasks after this.

    Args:
      increments: of one task.
      drop: share that is dropped, from 0 to below 1.
      seed: of the random choice.
    """
    check("drop", drop, SHARE)
    shared = Cores.of([increments])
    stays = np.random.default_rng(seed).random(shared.cores[0].shape) >= drop
    return shared.increments(shared.cores[0] * stays / (1 - drop))


def _check_some(several: Sequence[Increments]) -> None:
    if not several:
        raise UserError("There are no increments to combine: the list is empty.")


def _largest(numbers: np.ndarray, density: float) -> np.ndarray:
    """The numbers with all but the share of the largest set to zero."""
    size = max(round(density * numbers.size), 1)
    smallest = np.partition(np.abs(numbers), -size, axis=None)[-size]
    return np.where(np.abs(numbers) >= smallest, numbers, 0.0)
