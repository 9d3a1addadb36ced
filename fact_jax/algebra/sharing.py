"""A common dictionary for several trained tasks, after their training.

FacT-TT's tasks then have their own cores S between a common U and V, FacT-TK's their own P beside a
common U, C and V. Letters in shapes: `t` tasks, `n` slices, `r` rank.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fact_jax.algebra.increments import Increments, Joint, side_by_side
from fact_jax.algebra.rounding import Rounded, order_of_cores
from fact_jax.algebra.tucker import round_cores, round_tucker
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning import FacTTK, FacTTT
from fact_jax.tuning.method import Factors, Method
from fact_jax.tuning.slices import slices_per_block

# Of FacT-TK: each takes a decomposition of all tasks' cores, and later ones gain little.
_ROUNDS = 50


class _Shared(NamedTuple):
    """Factors of all tasks: the common ones, and the cores of each."""

    common: dict[str, np.ndarray]
    cores: list[dict[str, np.ndarray]]


def share(several: Sequence[Increments], method: Method, config: ViTConfig) -> list[Rounded]:
    """Finds factors of several tasks that share the method's large ones.

    This is the rounding of one task, `tucker.round_tucker` and `tucker.round_cores`, for the slices
    of all tasks side by side. Each task counts the same: its increments are divided by their norm
    before, and its cores multiplied by it afterwards.

    Args:
      several: increments of one ViT, one for each task.
      method: `FacTTT` or `FacTTK` with the rank and the scale that all tasks get.
      config: the ViT's.

    Returns:
      The factors of each task, in which U and V (and C) are the same. The errors have no bound.

    Raises:
      UserError: there are no tasks, one has no increments, or the method is another one.
    """
    if not several:
        raise UserError("There are no tasks to find a dictionary of: the list is empty.")
    norms = [one.norm for one in several]
    if not all(norms) or not method.scale:
        what = "The scale is 0" if all(norms) else "The increments of a task are all zero"
        raise UserError(f"{what}, so there is no dictionary to find.")
    together = side_by_side([(1 / n) * one for n, one in zip(norms, several, strict=True)])
    if isinstance(method, FacTTT):
        shared = _tensor_train(method, Joint.of(together), norms, config)
    elif isinstance(method, FacTTK):
        shared = _tucker(method, Joint.of(together), norms, config)
    else:
        raise UserError(
            f"Tasks cannot share factors of {type(method).__name__}; choose FacTTT or FacTTK."
        )
    rounded = []
    for one, cores in zip(several, shared.cores, strict=True):
        factors = {k: jnp.asarray(v, jnp.float32) for k, v in (shared.common | cores).items()}
        difference = one - Increments.of(method, factors, config)
        rounded.append(Rounded(method, factors, difference.norm / one.norm, None))
    return rounded


def _tensor_train(method: FacTTT, joint: Joint, norms: list[float], config: ViTConfig) -> _Shared:
    r = method.rank
    u, cores, v, _ = round_tucker(joint, r)
    by_task = cores.reshape(len(norms), config.depth, slices_per_block(config), r, r)
    common = {"U": u, "V": v / method.scale}
    return _Shared(common, [{"S": n * s} for n, s in zip(norms, by_task, strict=True)])


def _tucker(method: FacTTK, joint: Joint, norms: list[float], config: ViTConfig) -> _Shared:
    rounded = round_cores(joint, method.rank, order_of_cores(method, config), _ROUNDS)
    by_task = np.split(rounded.p, len(norms), axis=1)
    common = {"U": rounded.u, "C": rounded.c, "V": rounded.v / method.scale}
    return _Shared(common, [{"P": n * p} for n, p in zip(norms, by_task, strict=True)])


def conditioned(method: Method, factors: Factors) -> Factors:
    """The same increments by shared factors of unit size, as `share` gives them.

    Methods besides FacT-TT and FacT-TK keep their factors.

    FacT-TT's U and V get orthonormal columns and rows by QR decompositions, whose triangles go into
    the cores. FacT-TK's U, C and V are divided by numbers that P takes: its released order of cores
    does not commute with triangles. They have the norm sqrt(r) then, as r orthonormal columns.

    Args:
      method: one whose factors tasks can share.
      factors: trained ones; those of tasks that share U and V (and C) have them in common after
        this, too.
    """
    arrays = {name: np.asarray(x, np.float64) for name, x in factors.items()}
    if isinstance(method, FacTTT):
        (u, left), (v, right) = np.linalg.qr(arrays["U"]), np.linalg.qr(arrays["V"].T)
        more = method.rank - u.shape[1]  # a rank above the width is filled up with zeros
        cores = np.pad(left @ arrays["S"] @ right.T, ((0, 0), (0, 0), (0, more), (0, more)))
        u, v = (np.pad(x, ((0, 0), (0, more))) for x in (u, v))
        arrays |= {"U": u, "S": cores, "V": v.T}
    elif isinstance(method, FacTTK):
        for name in method.shared:
            size = np.linalg.norm(arrays[name]) / method.rank**0.5 or 1.0
            arrays |= {name: arrays[name] / size, "P": arrays["P"] * size}
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
