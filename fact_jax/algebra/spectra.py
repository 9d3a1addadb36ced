"""A look into trained tasks: where they change the network, and what they have in common.

Letters in shapes: `l` layers, `r` ranks, `t` tasks, `p` dimensions of a task's joint space.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.lora import by_site
from fact_jax.backbone.config import ViTConfig
from fact_jax.tuning.slices import mlp_slices


class Similarity(NamedTuple):
    """How near the spaces of tasks are, from 0, orthogonal, to 1, one within the other.

    Attributes:
      inputs: [t, t], of the joint column spaces: U of FacT.
      outputs: [t, t], of the joint row spaces: V of FacT.
    """

    inputs: Float64[np.ndarray, "t t"]
    outputs: Float64[np.ndarray, "t t"]


def singular_values(
    increments: Increments, config: ViTConfig
) -> dict[str, Float64[np.ndarray, "l r"]]:
    """The singular values of the increments of each of the six dense sites, by layer."""
    return {name: site.s for name, site in by_site(increments, config).items()}


def norms(increments: Increments, config: ViTConfig) -> dict[str, Float64[np.ndarray, " l"]]:
    """Frobenius norms of the increments of each of the six dense sites, by layer."""
    g = mlp_slices(config)
    squares = (increments.s**2).sum(axis=1).reshape(config.depth, -1)
    sizes = {"q": 1, "k": 1, "v": 1, "o": 1, "fc1": g, "fc2": g}
    parts = np.split(squares, np.cumsum(list(sizes.values()))[:-1], axis=1)
    return {name: np.sqrt(part.sum(axis=1)) for name, part in zip(sizes, parts, strict=True)}


def principal_cosines(
    first: Float64[np.ndarray, "d p"], second: Float64[np.ndarray, "d _"]
) -> Float64[np.ndarray, " _"]:
    """Cosines of the principal angles between the spans of orthonormal columns, largest first.

    Source: Bjorck and Golub, 1973.
    """
    cosines: np.ndarray = np.linalg.svd(first.T @ second, compute_uv=False).clip(max=1.0)
    return cosines


def similarity(several: Sequence[Increments]) -> Similarity:
    """The mean squared cosine of the principal angles between the spaces of each pair of tasks.

    Two random spaces of p of d dimensions have p / d in the mean.
    """
    joints = [Joint.of(one) for one in several]
    pairs = [[_nearness(a, b) for b in joints] for a in joints]
    inputs, outputs = np.moveaxis(np.asarray(pairs), 2, 0)
    return Similarity(inputs, outputs)


def _nearness(a: Joint, b: Joint) -> list[float]:
    """Mean squared cosines of the column spaces and of the row spaces."""
    spaces = (a.left, b.left), (a.right.T, b.right.T)
    return [float((principal_cosines(*pair) ** 2).mean()) for pair in spaces]
