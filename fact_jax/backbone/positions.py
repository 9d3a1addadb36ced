"""Position tables for other image sizes."""

import jax.numpy as jnp
import numpy as np


def _cubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Matrix [new, old] of bicubic interpolation as PyTorch does it.

    Half-pixel centres, no antialiasing, border samples repeated, cubic coefficient -0.75
    (torch.nn.functional.interpolate, which timm, transformers and DINOv2 use for their tables).
    """
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((new, old))
    for offset in range(4):
        t = np.abs(centre - (first + offset))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        value = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), value)
    return weights


def resize_positions(table: jnp.ndarray, grid: int) -> jnp.ndarray:
    """Resizes a position table [1, 1 + g*g, d] to [1, 1 + grid*grid, d]; the class row is kept."""
    old = int(round((table.shape[1] - 1) ** 0.5))
    if old == grid:
        return table
    w = jnp.asarray(_cubic_weights(old, grid), table.dtype)
    patches = table[0, 1:].reshape(old, old, -1)
    patches = jnp.einsum("yi,xj,ijd->yxd", w, w, patches, precision="highest")
    return jnp.concatenate([table[:, :1], patches.reshape(1, grid * grid, -1)], axis=1)
