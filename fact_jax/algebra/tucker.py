"""Tensor-train and Tucker rounding of increments: all slices share U and V.

Letters in shapes: `n` slices, `d` width, `r` rank, `p` and `q` dimensions of the joint column and
row spaces of the increments to be rounded.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

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


def leading(slices: Float64[np.ndarray, "n p r"], rank: int) -> Float64[np.ndarray, "p _"]:
    """The strongest `rank` directions of the columns of all slices, or all if there are fewer."""
    stacked = slices.swapaxes(0, 1).reshape(slices.shape[1], -1)
    if stacked.shape[1] > stacked.shape[0]:
        stacked = np.linalg.qr(stacked.T, mode="r").T
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
