"""Tensor-train rounding that keeps what increments do to the inputs that their slices really have.

Letters in shapes: `n` slices, `d` width, `r` rank, `p` and `q` dimensions of the joint column and
row spaces of the increments to be rounded.
"""

import numpy as np
from jaxtyping import Float64

from fact_jax.algebra.increments import Joint
from fact_jax.algebra.tucker import Tucker, filled, leading, round_tucker

ROUNDS = 200
STILL = 1e-5  # a fall of the error, as a share, that ends the refinement
STEPS = 30  # of conjugate gradients in a round
RIDGE = 0.01  # of the moments, as a share of their mean over all slices and directions


def round_weighted(joint: Joint, rank: int, moments: Float64[np.ndarray, "n p p"]) -> Tucker:
    """Rounds increments D_i to ``U S_i V`` with the least ``sum_i |C_i^(1/2) (D_i - U S_i V)|^2``.

    C_i is the second moment of the input of slice i, so that the sum is the mean square change of
    what the slices put out. U stays within the joint column space of the increments. Each round
    solves for S and V in closed form, given U, and for U by conjugate gradients, given both. The
    start is `round_tucker`, and no round raises the error.

    Args:
      joint: the increments in their joint spaces.
      rank: of the result.
      moments: C_i in the directions of ``joint.left`` (`fact_jax.algebra.moments`). A ridge is
        added for directions that few pictures show.

    Returns:
      The factors, U with orthonormal columns, without a bound.
    """
    if rank >= max(len(joint.left_values), len(joint.right_values)):
        return round_tucker(joint, rank)
    moments = ridged(moments)
    root = np.linalg.cholesky(moments).swapaxes(1, 2)  # C_i = root_i^T root_i
    u = joint.left.T @ round_tucker(joint, rank).u
    u = u[:, : len(joint.left_values)]
    seen = root @ joint.a
    whole, before = float((seen**2).sum()), np.inf
    for _ in range(ROUNDS):
        basis, triangle = np.linalg.qr(root @ u)
        inner = basis.swapaxes(1, 2) @ seen  # [n, r, .] of b
        v = leading((inner @ joint.b).swapaxes(1, 2), rank).T
        cores = inner @ (joint.b @ v.T)
        now = whole - float((cores**2).sum())
        if now >= before * (1 - STILL):
            break
        before, best = now, (u, np.linalg.solve(triangle, cores), v)
        u = _left(joint, moments, *best)
    u, cores, v = best
    return filled(joint.left @ u, cores, v @ joint.right, rank)


def ridged(moments: Float64[np.ndarray, "n p p"]) -> Float64[np.ndarray, "n p p"]:
    """The moments with the ridge."""
    size = moments.shape[1]
    mean = float(np.trace(moments, axis1=1, axis2=2).mean()) / size
    result: np.ndarray = moments + RIDGE * mean * np.eye(size)
    return result


def _left(
    joint: Joint,
    moments: Float64[np.ndarray, "n p p"],
    u: Float64[np.ndarray, "p r"],
    cores: Float64[np.ndarray, "n r r"],
    v: Float64[np.ndarray, "r q"],
) -> Float64[np.ndarray, "p r"]:
    """An orthonormal basis of the U that solves ``sum_i C_i (U S_i - D_i V^T) S_i^T = 0``."""
    squares = cores @ cores.swapaxes(1, 2)
    target = (moments @ (joint.a @ (joint.b @ v.T @ cores.swapaxes(1, 2)))).sum(axis=0)

    def apply(x: np.ndarray) -> np.ndarray:
        image: np.ndarray = (moments @ (x @ squares)).sum(axis=0)
        return image

    residual = target - apply(u)
    direction, square = residual, float((residual**2).sum())
    stop = 1e-16 * float((target**2).sum())
    for _ in range(STEPS):
        if square <= stop:
            break
        image = apply(direction)
        step = square / float((direction * image).sum())
        u, residual = u + step * direction, residual - step * image
        last, square = square, float((residual**2).sum())
        direction = residual + square / last * direction
    basis: np.ndarray = np.linalg.qr(u)[0]
    return basis
