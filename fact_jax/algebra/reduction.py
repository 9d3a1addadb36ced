"""A task's factors at a smaller rank, so that training can go on with fewer numbers.

What a method needs for this is either a form in `rounding`, or a `chain` (`tuning.method`): the
order in which its factors are multiplied, which is a tensor-train.
Letters in shapes: `n` matrices of a factor, `a` and `b` ranks beside it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from fact_jax.algebra.increments import Increments
from fact_jax.algebra.rounding import has_form, round_to
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning.method import ChainMethod, Factors, Method, factor_shapes

Core = Float64[np.ndarray, "a n b"]


class Reduced(NamedTuple):
    """The method at its smaller rank, its factors, and the error as a share of the increments."""

    method: Method
    factors: Factors
    error: float


def reducible(method: Method) -> bool:
    """Whether factors of this kind of method can be brought to a smaller rank."""
    if not hasattr(method, "rank"):
        return False
    # LoRA with one A for q, k and v has no such form: rounding gives each site its own.
    return isinstance(method, ChainMethod) or (
        has_form(method) and not getattr(method, "shared_input", False)
    )


def reduced(method: Method, factors: Mapping[str, Any], rank: int, config: ViTConfig) -> Reduced:
    """Rounds the factors of a method to a smaller rank.

    Each array of the result has the size, as a root mean square, that it had before. The learning
    rate then means the same as before.

    Args:
      method: the trained one, at its scale.
      factors: its arrays.
      rank: the new rank.
      config: the ViT's.

    Raises:
      UserError: the method cannot be rounded, or its increments are all zero.
    """
    smaller = cast(Method, dataclasses.replace(cast(Any, method), rank=rank))
    shapes = factor_shapes(smaller, config)
    before = {name: np.asarray(x, np.float64) for name, x in factors.items()}
    if isinstance(method, ChainMethod):
        arrays, error = _round_chain(method, before, rank)
    else:
        rounded = round_to(smaller, Increments.of(method, dict(factors), config), config)
        error = rounded.error
        arrays = {name: np.asarray(x, np.float64) for name, x in rounded.factors.items()}
    if {name: x.shape for name, x in arrays.items()} != shapes:
        raise UserError(
            f"Rounded to rank {rank}, {type(method).__name__} has other arrays "
            f"({', '.join(sorted(arrays))}) than {', '.join(sorted(shapes))}: a site may have no "
            "increment yet. Round later, or take another method."
        )
    arrays = _of_sizes(arrays, before)
    return Reduced(smaller, {k: jnp.asarray(x, jnp.float32) for k, x in arrays.items()}, error)


def _of_sizes(
    arrays: dict[str, np.ndarray], before: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same increments by arrays whose sizes are, up to one common number, those of before.

    The increments are linear in each array that is multiplied; LoRA's pairs are products apart.
    """
    groups: dict[str, list[str]] = {}
    for name in arrays:
        groups.setdefault(name.partition("_")[2], []).append(name)  # A_q and B_q; U, S and V
    result: dict[str, np.ndarray] = {}
    for names in groups.values():
        sizes = {n: float(np.sqrt((arrays[n] ** 2).mean())) for n in names}
        wanted = {n: float(np.sqrt((before[n] ** 2).mean())) for n in names}
        if not all(sizes.values()) or not all(wanted.values()):
            result |= {n: arrays[n] for n in names}
            continue
        ratios = {n: wanted[n] / sizes[n] for n in names}
        common = float(np.exp(np.mean([np.log(r) for r in ratios.values()])))
        result |= {n: arrays[n] * (ratios[n] / common) for n in names}
    return result


def _round_chain(
    method: ChainMethod, factors: Mapping[str, np.ndarray], rank: int
) -> tuple[dict[str, np.ndarray], float]:
    """Rounds a tensor-train (Oseledets, 2011): a sweep of QR, and one of truncated SVD back."""
    names = method.chain
    cores = [_core(factors[name], first=i == 0) for i, name in enumerate(names)]
    for i in range(len(cores) - 1, 0, -1):  # from the right: the rest becomes orthonormal rows
        a, n, b = cores[i].shape
        q, r = np.linalg.qr(cores[i].reshape(a, n * b).T)
        cores[i] = q.T.reshape(-1, n, b)
        cores[i - 1] = cores[i - 1] @ r.T
    norm = float(np.linalg.norm(cores[0]))
    if not norm:
        raise UserError("The increments are all zero, so there is nothing to round.")
    lost = 0.0
    for i in range(len(cores) - 1):
        a, n, b = cores[i].shape
        u, s, v = np.linalg.svd(cores[i].reshape(a * n, b), full_matrices=False)
        lost += float((s[rank:] ** 2).sum())
        cores[i] = _padded(u[:, :rank], rank, axis=1).reshape(a, n, rank)
        carried = _padded(s[:rank, None] * v[:rank], rank, axis=0)
        cores[i + 1] = np.einsum("ab,bnc->anc", carried, cores[i + 1])
    last = len(names) - 1
    arrays = {
        name: core[0] if i == 0 else core[..., 0] if i == last else core.swapaxes(0, 1)
        for i, (name, core) in enumerate(zip(names, cores, strict=True))
    }
    return arrays, lost**0.5 / norm


def _core(factor: np.ndarray, *, first: bool) -> Core:
    """A factor [d, r], [n, a, b] or, as the last one, [r, d], as a core."""
    if factor.ndim == 3:
        return factor.swapaxes(0, 1)
    return factor[None] if first else factor[..., None]


def _padded(matrix: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """The matrix with zeros up to the rank."""
    missing = rank - matrix.shape[axis]
    pad = [(0, missing if i == axis else 0) for i in range(2)]
    return np.pad(matrix, pad) if missing > 0 else matrix
