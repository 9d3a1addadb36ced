"""LoRA's form of increments: a truncated singular value decomposition for each site and layer."""

import numpy as np

from fact_jax.algebra.increments import Increments
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.config import ViTConfig
from fact_jax.tuning.slices import mlp_slices, slices_per_block


def by_site(increments: Increments, config: ViTConfig) -> dict[str, Increments]:
    """Increments of the six dense sites, [l] matrices each: fc1 [d, g d], fc2 [g d, d]."""
    g, per_block = mlp_slices(config), slices_per_block(config)
    a, b = increments.u * increments.s[:, None], increments.v
    _, d, r = a.shape
    a, b = a.reshape(-1, per_block, d, r), b.reshape(-1, per_block, r, d)
    depth = len(a)
    diagonal = np.eye(g)
    sites = {}
    for i, name in enumerate(SITES):
        if name == "fc1":  # side by side
            left = a[:, i : i + g].swapaxes(1, 2).reshape(depth, d, g * r)
            right = np.einsum("gh,lgre->lgrhe", diagonal, b[:, i : i + g])
            right = right.reshape(depth, g * r, g * d)
        elif name == "fc2":  # one below the other
            left = np.einsum("gh,lgdr->lgdhr", diagonal, a[:, 4 + g :])
            left = left.reshape(depth, g * d, g * r)
            right = b[:, 4 + g :].reshape(depth, g * r, d)
        else:
            left, right = a[:, i], b[:, i]
        sites[name] = Increments.from_pairs(left, right)
    return sites


def round_lora(
    increments: Increments, rank: int, config: ViTConfig
) -> tuple[dict[str, np.ndarray], float]:
    """The best factors of a rank, A [l, in, r] and B [l, r, out] of each site that changes.

    No other factors of this rank have a smaller error (Eckart and Young, 1936).

    Returns:
      The arrays by LoRA's names, and the error, a Frobenius norm.
    """
    factors: dict[str, np.ndarray] = {}
    lost = 0.0
    for name, site in by_site(increments, config).items():
        if not site.norm:
            continue
        root = np.sqrt(site.s[:, :rank])
        missing = max(rank - site.s.shape[1], 0)
        a, b = site.u[..., :rank] * root[:, None], root[..., None] * site.v[:, :rank]
        factors[f"A_{name}"] = np.pad(a, ((0, 0), (0, 0), (0, missing)))
        factors[f"B_{name}"] = np.pad(b, ((0, 0), (0, missing), (0, 0)))
        lost += float((site.s[:, rank:] ** 2).sum())
    return factors, lost**0.5
