"""The places of patches as the network knows them: tables for other sizes, and rotations."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fact_jax.backbone.config import ViTConfig

ROPE_BASE = 100.0  # of DINOv3


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel at distances t."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of bicubic interpolation as PyTorch does it.

    Half-pixel centres, no antialiasing, border samples repeated, cubic coefficient -0.75
    (torch.nn.functional.interpolate, which timm, transformers and DINOv2 use for their tables).
    """
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((new, old))
    for offset in range(4):
        value = _cubic(np.abs(centre - (first + offset)), -0.75)
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), value)
    return weights


def _antialiased_weights(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of PyTorch's bicubic interpolation with ``antialias=True``.

    The kernel is as wide as the patches are far apart, its coefficient is -0.5, and what lies
    outside the table is left out (ATen, UpSampleKernel.cpp).
    """
    scale = max(old / new, 1.0)
    centre = (np.arange(new) + 0.5) * old / new
    first = np.maximum((centre - 2 * scale + 0.5).astype(int), 0)
    last = np.minimum((centre + 2 * scale + 0.5).astype(int), old)
    places = np.arange(old)
    weights = _cubic(np.abs(places + 0.5 - centre[:, None]) / scale, -0.5)
    weights *= (places >= first[:, None]) & (places < last[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _linear_weights(old: int, new: int) -> np.ndarray:
    """Matrix [new, old] of PyTorch's bilinear interpolation, without antialiasing."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.asarray(np.maximum(1 - np.abs(centre[:, None] - np.arange(old)), 0.0))


# Ways to resize a table (`ViTConfig.table_resize`).
_WEIGHTS = {"bicubic": _bicubic_weights, "antialias": _antialiased_weights}


def resize_positions(
    table: Array, grid: int, num_single: int = 1, way: str = "bicubic"
) -> Float[Array, "1 n d"]:
    """Resizes a position table [1, s + g*g, d] to [1, s + grid*grid, d].

    The `num_single` first rows, s, belong to the class token and are kept.
    """
    old = int(round((table.shape[1] - num_single) ** 0.5))
    if old == grid:
        return table
    patches = _resized(table[0, num_single:], _WEIGHTS[way](old, grid))
    return jnp.concatenate([table[:, :num_single], patches.reshape(1, grid * grid, -1)], axis=1)


def _resized(rows: Float[Array, "n d"], weights: np.ndarray) -> Float[Array, "y x d"]:
    """The rows of a square, each side interpolated with the weights [new, old]."""
    old = weights.shape[1]
    w = jnp.asarray(weights, rows.dtype)
    square = rows.reshape(old, old, -1)
    return jnp.einsum("yi,xj,ijd->yxd", w, w, square, precision="highest")


@functools.lru_cache(maxsize=16)
def _angles(grid: int, size: int) -> np.ndarray:
    """Angles [grid * grid, size / 2] of a patch's two places, for heads of this size."""
    # A step that is no binary fraction can give one number too many, as for heads of 196.
    frequencies = ROPE_BASE ** -np.arange(0, 1, 4 / size)[: size // 4]
    line = 2 * (np.arange(grid) + 0.5) / grid - 1
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = 2 * math.pi * places[:, :, None] * frequencies
    return np.asarray(angles.reshape(grid * grid, size // 2))


def rotate(x: Float[Array, "b n d"], config: ViTConfig, num_single: int) -> Float[Array, "b n d"]:
    """Rotates the queries or keys of the patches by their places: DINOv3's axial RoPE.

    The `num_single` first tokens have no place. Numbers i and i + s/2 of a head of size s turn
    together; half of the angles are of the row, half of the column, both from -1 to 1.
    """
    grid = math.isqrt(x.shape[1] - num_single) if x.shape[1] > num_single else 0
    if not grid:
        return x
    size = config.width // config.num_heads
    angles = _angles(grid, size)
    cos, sin = (jnp.asarray(f(angles), jnp.float32)[None, :, None] for f in (np.cos, np.sin))
    y = (
        x[:, num_single:]
        .astype(jnp.float32)
        .reshape(x.shape[0], grid * grid, config.num_heads, size)
    )
    first, second = y[..., : size // 2], y[..., size // 2 :]
    y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    y = y.reshape(x.shape[0], grid * grid, config.width).astype(x.dtype)
    return jnp.concatenate([x[:, :num_single], y], axis=1)


@functools.lru_cache(maxsize=16)
def _distances(grid: int) -> np.ndarray:
    """Rows [1 + grid^2, 1 + grid^2] of BEiT's table: of two patches, by their distance.

    The last three rows are for the class token to patches, back, and to itself.
    """
    side = 2 * grid - 1
    y, x = np.divmod(np.arange(grid * grid), grid)
    rows = (y[:, None] - y + grid - 1) * side + x[:, None] - x + grid - 1
    rows = np.pad(rows, ((1, 0), (1, 0)))
    rows[0, :], rows[:, 0] = side * side, side * side + 1
    rows[0, 0] = side * side + 2
    return np.asarray(rows)


def relative_bias(
    table: Float[Array, "t h"], grid: int, num_prompts: int = 0
) -> Float[Array, "h n n"]:
    """BEiT's bias of the scores, of each query (first) and key; that of prompts is zero.

    The tokens are the class token, the prompts and the patches. A table of another grid is
    interpolated linearly, as in transformers.
    """
    old = int(round((len(table) - 3) ** 0.5))
    if old != 2 * grid - 1:
        square = _resized(table[:-3], _linear_weights(old, 2 * grid - 1))
        table = jnp.concatenate([square.reshape(-1, table.shape[1]), table[-3:]])
    bias = jnp.moveaxis(table[_distances(grid)], -1, 0)
    if num_prompts:
        for axis in (1, 2):
            first, rest = jnp.split(bias, [1], axis=axis)
            shape = list(bias.shape)
            shape[axis] = num_prompts
            bias = jnp.concatenate([first, jnp.zeros(shape, bias.dtype), rest], axis=axis)
    return bias
