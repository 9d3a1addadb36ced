"""Canonical polyadic rounding of increments: a sum of rank-one tensors, which is FacT-CP.

Letters in shapes: `n` slices, `d` width, `r` rank, `p` and `q` dimensions of spaces that the
slices share.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from fact_jax.algebra.increments import Joint
from fact_jax.algebra.tucker import round_tucker

SWEEPS = 500  # most sweeps of alternating least squares
STILL = 1e-6  # an improvement of the error, as a share, that ends them
STARTS = 3  # random ones, besides the singular vectors
EXACT = 1e-8  # an error, as a share of the norm, that needs no other start
RIDGE = 1e-10  # of the normal equations, as a share of their largest entry


class Polyadic(NamedTuple):
    """Increments ``u @ diag(c[i]) @ v``.

    Attributes:
      u: [d, r].
      c: [n, r]; a component's three vectors have equal norms.
      v: [r, d].
    """

    u: Float64[np.ndarray, "d r"]
    c: Float64[np.ndarray, "n r"]
    v: Float64[np.ndarray, "r d"]


def round_polyadic(joint: Joint, rank: int) -> Polyadic:
    """Rounds increments to a sum of `rank` rank-one tensors by alternating least squares.

    Where the joint spaces are larger than twice the rank, the increments are first rounded to that
    Tucker rank. The best of several starts is taken: the leading singular vectors, and random ones
    of fixed seeds. Finding the best sum is hard in general (Hillar and Lim, 2013), so there is no
    bound on the error.

    Args:
      joint: the increments in their joint spaces.
      rank: number r of rank-one tensors.
    """
    small = round_tucker(joint, max(2 * rank, 32))
    live = small.u.any(axis=0), small.v.any(axis=1)
    tensor = small.cores[:, live[0]][:, :, live[1]]
    left, right = small.u[:, live[0]], small.v[live[1]]
    rng = np.random.default_rng(0)
    starts = []
    for start in range(1 + STARTS):
        u, v = (rng.normal(size=(size, rank)) for size in tensor.shape[1:])
        if start == 0:
            u[:, : len(u)], v[:, : len(v)] = np.eye(len(u))[:, :rank], np.eye(len(v))[:, :rank]
        starts.append(_alternate(tensor, u, v))
        if _error(tensor, *starts[-1]) <= EXACT * float(np.linalg.norm(tensor)):
            break
    u, c, v = min(starts, key=lambda result: _error(tensor, *result))
    norms = [np.linalg.norm(x, axis=0) for x in (u, c, v)]
    even = np.prod(norms, axis=0) ** (1 / 3)
    u, c, v = (
        x * np.divide(even, norm, out=np.zeros(rank), where=norm > 0)
        for x, norm in zip((u, c, v), norms, strict=True)
    )
    return Polyadic(left @ u, c, v.T @ right)


_Factors = tuple[np.ndarray, np.ndarray, np.ndarray]


def _alternate(tensor: np.ndarray, u: np.ndarray, v: np.ndarray) -> _Factors:
    """Alternating least squares until the error stands still: U [p, r], C [n, r], V [q, r]."""
    before, norm = np.inf, float(np.linalg.norm(tensor))
    for sweep in range(SWEEPS):
        c = _solved(np.einsum("nar,ar->nr", tensor @ v, u), u, v)
        u = _solved(np.einsum("nar,nr->ar", tensor @ v, c), c, v)
        v = _solved(np.einsum("nbr,nr->br", tensor.swapaxes(1, 2) @ u, c), c, u)
        if sweep % 10 == 0:
            error = _error(tensor, u, c, v)
            if error >= before * (1 - STILL) or error <= EXACT * norm:
                break
            before = error
    return u, c, v


def _solved(right: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least-squares solution of one factor, [size, r], the other two given."""
    normal = (x.T @ x) * (y.T @ y)
    normal = normal + RIDGE * np.abs(normal).max() * np.eye(len(normal))
    solution: np.ndarray = np.linalg.solve(normal, right.T).T
    return solution


def _error(tensor: np.ndarray, u: np.ndarray, c: np.ndarray, v: np.ndarray) -> float:
    """Frobenius norm of the difference."""
    return float(np.linalg.norm(tensor - (u * c[:, None]) @ v.T))
