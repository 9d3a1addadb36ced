"""Tensor-train and Tucker rounding of increments: all slices share U and V.

Letters in shapes: `n` slices, `d` width, `r` rank, `p` and `q` dimensions of the joint column and
row spaces of the increments to be rounded.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from fact_jax.algebra.increments import Joint

ROUNDS = 500  # most rounds of refinement; a dozen is the rule
STILL = 1e-7  # an improvement of the captured norm, as a share, that ends the refinement


class Tucker(NamedTuple):
    """Increments ``u @ cores[i] @ v``.

    Attributes:
      u: [d, r], orthonormal columns; zero beyond the rank of the increments.
      cores: [n, r, r].
      v: [r, d], orthonormal rows, or zero.
      bound: the Frobenius norm that the error cannot exceed.
    """

    u: Float64[np.ndarray, "d r"]
    cores: Float64[np.ndarray, "n r r"]
    v: Float64[np.ndarray, "r d"]
    bound: float


def tail(values: Float64[np.ndarray, " p"], rank: int) -> float:
    """Norm of the singular values after the first `rank`."""
    return float(np.linalg.norm(values[rank:]))


def round_tucker(joint: Joint, rank: int) -> Tucker:
    """Rounds increments to a common U and V of the given rank, which is FacT-TT.

    The start is the truncated higher-order singular value decomposition (De Lathauwer, De Moor and
    Vandewalle, 2000a). Its error is at most ``sqrt(t1^2 + t2^2)``, where t1 and t2 are the norms of
    the singular values that both unfoldings lose. No factors of this rank have a smaller error than
    t1 or t2, so the start is within ``sqrt(2)`` of the best ones. Higher-order orthogonal iteration
    (the same authors, 2000b) then lowers the error until it stands still.

    Args:
      joint: the increments in their joint spaces.
      rank: of the result. Above the increments' own it is filled up with zeros.
    """
    left, right = np.eye(len(joint.left_values)), np.eye(len(joint.right_values))
    left, right, captured = left[:, :rank], right[:, :rank], -1.0
    for _ in range(ROUNDS):
        cores = left.T @ joint.a @ (joint.b @ right)
        now = float((cores**2).sum())
        if now <= captured * (1 + STILL):
            break
        captured = now
        left = leading(joint.a @ (joint.b @ right), rank)
        right = leading(joint.b.swapaxes(1, 2) @ (joint.a.swapaxes(1, 2) @ left), rank)
    bound = float(np.hypot(tail(joint.left_values, rank), tail(joint.right_values, rank)))
    cores = left.T @ joint.a @ (joint.b @ right)
    return filled(joint.left @ left, cores, right.T @ joint.right, rank)._replace(bound=bound)


class Cores(NamedTuple):
    """Increments ``u @ cores[i] @ v`` whose cores are combinations of r matrices.

    ``cores[i]`` is slice i of the matrices ``sum_k c[:, :, k] p[k, i]``, which `order` rearranges.

    Attributes:
      u: [d, r], orthonormal columns; zero beyond the rank of the increments.
      c: [r, r, r].
      p: [r, n], orthonormal rows, or zero.
      v: [r, d], orthonormal rows, or zero.
      bound: the Frobenius norm that the error cannot exceed.
    """

    u: Float64[np.ndarray, "d r"]
    c: Float64[np.ndarray, "r r r"]
    p: Float64[np.ndarray, "r n"]
    v: Float64[np.ndarray, "r d"]
    bound: float


def round_cores(
    joint: Joint, rank: int, order: Int[np.ndarray, " m"], rounds: int = ROUNDS
) -> Cores:
    """Rounds increments to a common U, C and V of the given rank, which is FacT-TK.

    The start is `round_tucker`, whose cores are then rounded by a singular value decomposition; the
    bound adds the square of what that loses. The refinement goes around: the best C and P of given
    U and V by that decomposition, the best orthonormal U of the others by that of a matrix (the
    orthogonal Procrustes problem, Schonemann, 1966), and V in the same way. No step raises the
    error. For cores in the released order this keeps U and V orthonormal, which is a restriction
    there: that order does not commute with a change of basis.

    Args:
      joint: the increments in their joint spaces.
      rank: of the result. Above the increments' own it is filled up with zeros.
      order: of a block's s cores, m = s r r numbers: ``slices.flat = cores.flat[order]``.
      rounds: most rounds of refinement.
    """
    start = round_tucker(joint, rank)
    left, right = joint.left.T @ start.u, start.v @ joint.right.T  # [p, r], [r, q]
    captured, lost = -1.0, 0.0
    for turn in range(rounds):
        cores = left.T @ joint.a @ (joint.b @ right.T)
        c, p = _combinations(cores, order)
        if turn == 0:
            lost = float((cores**2).sum() - (c**2).sum())
        now = float((c**2).sum())
        if now <= captured * (1 + STILL):
            break
        captured, best = now, (left, c, p, right)
        slices = of_cores(c, p, order)
        left = _procrustes(joint.a @ (joint.b @ right.T) @ slices.swapaxes(1, 2), left)
        inner = slices.swapaxes(1, 2) @ (left.T @ joint.a)
        right = _procrustes(joint.b.swapaxes(1, 2) @ inner.swapaxes(1, 2), right.T).T
    left, c, p, right = best
    return Cores(
        joint.left @ left,
        c,
        p,
        right @ joint.right,
        float(np.hypot(start.bound, max(lost, 0) ** 0.5)),
    )


def of_cores(
    c: Float64[np.ndarray, "r r k"], p: Float64[np.ndarray, "k n"], order: Int[np.ndarray, " m"]
) -> Float64[np.ndarray, "n r r"]:
    """The slices' cores of C and P."""
    r = len(c)
    blocks = np.einsum("abk,kn->nab", c, p).reshape(-1, len(order))
    slices: np.ndarray = blocks[:, order].reshape(-1, r, r)
    return slices


def _combinations(
    slices: Float64[np.ndarray, "n r r"], order: Int[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, "r r r"], Float64[np.ndarray, "r n"]]:
    """The best C and P of the slices' cores."""
    n, r, _ = slices.shape
    blocks = np.empty((n * r * r // len(order), len(order)))
    blocks[:, order] = slices.reshape(len(blocks), -1)
    u, s, v = np.linalg.svd(blocks.reshape(n, r * r), full_matrices=False)
    missing = max(r - len(s), 0)
    c = (s[:r, None] * v[:r]).reshape(-1, r, r).transpose(1, 2, 0)
    return np.pad(c, ((0, 0), (0, 0), (0, missing))), np.pad(u.T[:r], ((0, missing), (0, 0)))


def _procrustes(
    slices: Float64[np.ndarray, "n p r"], before: Float64[np.ndarray, "p r"]
) -> Float64[np.ndarray, "p r"]:
    """The orthonormal columns that are nearest to the sum of slices; zero where `before` is."""
    live = before.any(axis=0)
    u, _, v = np.linalg.svd(slices.sum(axis=0)[:, live], full_matrices=False)
    columns = np.zeros_like(before)
    columns[:, live] = u @ v
    return columns


def leading(slices: Float64[np.ndarray, "n p r"], rank: int) -> Float64[np.ndarray, "p _"]:
    """The strongest `rank` directions of the columns of all slices, or all if there are fewer."""
    stacked = slices.swapaxes(0, 1).reshape(slices.shape[1], -1)
    if stacked.shape[1] > stacked.shape[0]:
        stacked = np.linalg.qr(stacked.T)[1].T
    return np.linalg.svd(stacked, full_matrices=False)[0][:, :rank]


def filled(
    u: Float64[np.ndarray, "d _"],
    cores: Float64[np.ndarray, "n _ _"],
    v: Float64[np.ndarray, "_ d"],
    rank: int,
) -> Tucker:
    """Factors filled up with zeros to the given rank."""
    left, right = rank - u.shape[1], rank - len(v)
    return Tucker(
        np.pad(u, ((0, 0), (0, left))),
        np.pad(cores, ((0, 0), (0, left), (0, right))),
        np.pad(v, ((0, right), (0, 0))),
        0.0,
    )
