"""Increments of a trained task: one thin singular value decomposition for each square slice.

Every method whose adaptation is `LowRank` alone comes here through ``method.adaptation``. Numbers
are float64 on the host. No d x d matrix is formed. Letters in shapes: `n` slices, 12 L in FacT's
order (`fact_jax.tuning.slices`), `d` width, `r` largest rank of a slice, `l` layers, `g` slices of
one MLP layer, `p` and `q` dimensions of the joint column and row spaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.tuning.method import Factors, Method
from fact_jax.tuning.slices import mlp_slices

# Singular values below this share of the largest are float32's rounding noise.
NOISE = 4 * float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Increments:
    """Increments ``u[i] @ diag(s[i]) @ v[i]`` of all slices, which add up and scale as vectors.

    Attributes:
      u: [n, d, r], orthonormal columns, or zero where a slice has a smaller rank.
      s: [n, r], singular values in descending order.
      v: [n, r, e], orthonormal rows, or zero; e is d, but for the sites of `by_site`.
    """

    u: Float64[np.ndarray, "n d r"]
    s: Float64[np.ndarray, "n r"]
    v: Float64[np.ndarray, "n r e"]

    @classmethod
    def of(cls, method: Method, factors: Factors, config: ViTConfig) -> Increments:
        """The increments that trained factors stand for, at the method's scale.

        Raises:
          UserError: the method changes more than low-rank increments can say, such as prompts, or
            the increments are not finite.
        """
        adaptation = method.adaptation(factors, config)
        if parts := other_parts(adaptation):
            raise UserError(
                f"{type(method).__name__} has {', '.join(parts)}, which have no low-rank form. "
                "Only tasks whose changes are increments of the dense layers can be rounded, "
                "converted and combined."
            )
        with np.errstate(invalid="ignore", over="ignore"):  # the error below says it
            a, b = _slices(adaptation, config)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(
                "The increments are not finite: a factor is not, or its scale is too large for "
                "float32. Train again with a smaller learning rate or scale."
            )
        return cls.from_pairs(a, b)

    @classmethod
    def from_pairs(cls, a: Float[np.ndarray, "n d r"], b: Float[np.ndarray, "n r e"]) -> Increments:
        """The increments ``a[i] @ b[i]``, brought to the smallest rank that holds them all."""
        q_a, r_a = np.linalg.qr(a)
        q_b, r_b = np.linalg.qr(b.swapaxes(1, 2))
        u, s, v = np.linalg.svd(r_a @ r_b.swapaxes(1, 2))
        real = s > NOISE * max(float(s.max(initial=0.0)), np.finfo(np.float64).tiny)
        rank = max(int(real.sum(axis=1).max(initial=0)), 1)
        s, real = np.where(real, s, 0.0)[:, :rank], real[:, :rank]
        u, v = (q_a @ u)[..., :rank] * real[:, None], v[:, :rank] @ q_b.swapaxes(1, 2)
        return cls(u, s, v * real[..., None])

    @property
    def norm(self) -> float:
        """Frobenius norm over all slices."""
        return float(np.sqrt((self.s**2).sum()))

    def __mul__(self, factor: float) -> Increments:
        return Increments(self.u * np.sign(factor), self.s * abs(factor), self.v)

    __rmul__ = __mul__

    def __neg__(self) -> Increments:
        return -1.0 * self

    def __add__(self, other: Increments) -> Increments:
        return total([self, other])

    def __sub__(self, other: Increments) -> Increments:
        return total([self, -other])


def total(several: Sequence[Increments]) -> Increments:
    """The sum of increments of one ViT, whose pairs stand side by side before one compression."""
    if len({one.u.shape[:2] for one in several}) != 1:
        shapes = " and ".join(f"{len(one.u)} slices of width {one.u.shape[1]}" for one in several)
        raise UserError(f"Increments of different ViTs do not add up: {shapes}.")
    a = np.concatenate([one.u * one.s[:, None] for one in several], axis=2)
    return Increments.from_pairs(a, np.concatenate([one.v for one in several], axis=1))


def side_by_side(several: Sequence[Increments]) -> Increments:
    """All tasks' slices as those of one, padded to one rank."""
    if len({one.u.shape[:2] for one in several}) != 1:
        raise UserError("The increments are of different ViTs.")
    rank = max(one.s.shape[1] for one in several)
    pads = [(0, rank - one.s.shape[1]) for one in several]
    return Increments(
        np.concatenate(
            [np.pad(x.u, ((0, 0), (0, 0), pad)) for x, pad in zip(several, pads, strict=True)]
        ),
        np.concatenate([np.pad(x.s, ((0, 0), pad)) for x, pad in zip(several, pads, strict=True)]),
        np.concatenate(
            [np.pad(x.v, ((0, 0), pad, (0, 0))) for x, pad in zip(several, pads, strict=True)]
        ),
    )


class Joint(NamedTuple):
    """Increments in the spaces that all slices share, ``left @ a[i] @ b[i] @ right``.

    Attributes:
      left: [d, p], orthonormal: the joint column space, strongest direction first.
      a: [n, p, r].
      b: [n, r, q], orthonormal rows.
      right: [q, d], orthonormal: the joint row space.
      left_values: [p], singular values of the first unfolding, the slices side by side.
      right_values: [q], those of the second, the slices one below the other.
    """

    left: Float64[np.ndarray, "d p"]
    a: Float64[np.ndarray, "n p r"]
    b: Float64[np.ndarray, "n r q"]
    right: Float64[np.ndarray, "q d"]
    left_values: Float64[np.ndarray, " p"]
    right_values: Float64[np.ndarray, " q"]

    @classmethod
    def of(cls, increments: Increments) -> Joint:
        """The joint spaces. FacT's slices share U and V, so p and q are its rank."""
        u, s, v = increments.u, increments.s, increments.v
        left, left_values = _columns(np.concatenate(list(u * s[:, None]), axis=1))
        right, right_values = _columns(np.concatenate(list(s[..., None] * v)).T)
        a, b = left.T @ (u * s[:, None]), v @ right
        return cls(left, a, b, right.T, left_values, right_values)

    @property
    def norm(self) -> float:
        """Frobenius norm over all slices."""
        return float(np.linalg.norm(self.a))


def _columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal basis of the column space and singular values, without the noise."""
    # The triangle of the transposed has the same left factor, and is small.
    small = np.linalg.qr(matrix.T)[1].T if matrix.shape[1] > matrix.shape[0] else matrix
    basis, values, _ = np.linalg.svd(small, full_matrices=False)
    rank = max(int((values > NOISE * values[0]).sum()), 1)
    return basis[:, :rank], values[:rank]


def other_parts(adaptation: Adaptation) -> list[str]:
    """The changes of an adaptation that are no increments, in words."""
    changes: dict[str, Any] = {
        "prompts": adaptation.prompts,
        "bottlenecks": adaptation.bypasses,
        "scales and shifts": adaptation.affines or adaptation.patches or adaptation.final,
        "norms of columns": adaptation.magnitudes,
        "replaced weights": adaptation.weights,
    }
    return [words for words, change in changes.items() if change]


def _slices(adaptation: Adaptation, config: ViTConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pairs a [n, d, r] and b [n, r, d] of all slices, padded with zeros to one rank."""
    d, g = config.width, mlp_slices(config)
    by_slice: list[tuple[np.ndarray, np.ndarray]] = []  # [l, d, r] and [l, r, d]
    for site in ("q", "k", "v", "o", "fc1", "fc2"):
        a, b = _plain(adaptation.site(site), site, config)
        if site == "fc1":
            by_slice += [_live(a, b[..., i * d : (i + 1) * d]) for i in range(g)]
        elif site == "fc2":
            by_slice += [_live(a[:, i * d : (i + 1) * d], b) for i in range(g)]
        else:
            by_slice.append(_live(a, b))
    rank = max(1, *(a.shape[2] for a, _ in by_slice))
    a = np.stack([np.pad(a, ((0, 0), (0, 0), (0, rank - a.shape[2]))) for a, _ in by_slice], 1)
    b = np.stack([np.pad(b, ((0, 0), (0, rank - b.shape[1]), (0, 0))) for _, b in by_slice], 1)
    return a.reshape(-1, d, rank), b.reshape(-1, rank, d)


def _live(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A pair without the products that are zero in all layers."""
    live = a.any(axis=(0, 1)) & b.any(axis=(0, 2))
    return a[:, :, live], b[:, live]


def _plain(pairs: Sequence[LowRank], site: str, config: ViTConfig) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a site as one, a [l, in, r] and b [l, r, out], without groups of columns."""
    rows = config.mlp_dim if site == "fc2" else config.width
    columns = config.mlp_dim if site == "fc1" else config.width
    left = [np.zeros((config.depth, rows, 0))]
    right = [np.zeros((config.depth, 0, columns))]
    for pair in pairs:
        a = np.asarray(pair.a, np.float64)
        left.append(a if pair.u is None else np.asarray(pair.u, np.float64) @ a)
        b = np.asarray(pair.b, np.float64)
        groups = a.shape[-1] // b.shape[1]
        spread = np.einsum("gh,lrf->lgrhf", np.eye(groups), b)
        right.append(spread.reshape(config.depth, a.shape[-1], columns))
    return np.concatenate(left, axis=2), np.concatenate(right, axis=1)
