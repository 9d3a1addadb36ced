"""Mixup, cutmix, label smoothing and random erasing of a batch, inside the training step.

Source: timm 0.4.12, `data/mixup.py` (batch mode) and `data/random_erasing.py` (mode 'pixel'), which
work on normalised images: erase first, then mix. Letters: `b` images, `y`, `x` pixels, `c` classes
(padded).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fact_jax.training.trial import Integer

_AREA = (0.02, 1 / 3)  # share of the image that an erased box covers
_RATIO = (0.3, 1 / 0.3)  # height by width of an erased box
_ATTEMPTS = 10  # draws of a box's shape before an image is left alone


class Draw(NamedTuple):
    """Weights of an image in its mixture, for its pixels and for its label."""

    pixels: Float[Array, "y x 1"]
    label: Float[Array, ""]


def soft_targets(
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    num_classes: Integer,
    padded_classes: int,
    smoothing: float,
) -> Float[Array, "b c"]:
    """Distributions over the classes, with `smoothing` spread over the first `num_classes`.

    The other classes, padding, have the target zero. A row that is not valid has the target zero
    everywhere, so that its cross-entropy is zero.
    """
    off = smoothing / jnp.asarray(num_classes, jnp.float32)
    real = jnp.arange(padded_classes, dtype=jnp.int32) < num_classes
    targets = jax.nn.one_hot(labels, padded_classes, dtype=jnp.float32) * (1.0 - smoothing) + off
    return jnp.where(valid[:, None] & real[None], targets, 0.0)


def soft_labels(
    labels: Int[Array, "b c"], num_classes: Integer, smoothing: float
) -> Float[Array, "b c"]:
    """Labels of a multi-label task as shares: ``smoothing / 2`` in the place of 0, its rest of 1.

    Classes from `num_classes` on are padding and stay 0.
    """
    real = jnp.arange(labels.shape[-1], dtype=jnp.int32) < num_classes
    shares = labels.astype(jnp.float32) * (1.0 - smoothing) + smoothing / 2
    return jnp.where(real[None], shares, 0.0)


def mix(
    key: jax.Array,
    images: Float[Array, "b y x 3"],
    targets: Float[Array, "b c"],
    valid: Bool[Array, " b"],
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "b y x 3"], Float[Array, "b c"]]:
    """The batch mixed with itself reversed, and its targets.

    `mixup` and `cutmix` are the alphas of the Beta distributions, Python numbers; 0 turns one off.
    With both on, each is chosen half of the time. One weight is drawn for the whole batch. Only
    valid rows are reversed, among themselves: the first mixes with the last valid one, and so on;
    a row in the middle, or alone, meets itself and does not change. A row that is not valid keeps
    its image and its target.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    partner = _reversed(valid)
    images = jnp.asarray(images)
    pixels, label = draw(key, images.shape[1], images.shape[2], mixup, cutmix)
    pixels = pixels.astype(images.dtype)
    mixed = images * pixels[None] + images[partner] * (1 - pixels)[None]
    moves = valid & (partner != jnp.arange(len(valid), dtype=jnp.int32))
    mixed = jnp.where(moves[:, None, None, None], mixed, images)
    return mixed, targets * label + targets[partner] * (1 - label)


def _reversed(valid: Bool[Array, " b"]) -> Int[Array, " b"]:
    """The partner of each row: valid rows in reverse order, others themselves."""
    count, rows = valid.sum(dtype=jnp.int32), jnp.arange(valid.shape[0], dtype=jnp.int32)
    order = jnp.argsort(~valid, stable=True).astype(jnp.int32)  # the valid rows first
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    return jnp.where(valid, order[jnp.maximum(count - 1 - rank, 0)], rows)


def draw(key: jax.Array, height: int, width: int, mixup: float, cutmix: float) -> Draw:
    """The random numbers of one batch; `mixup` or `cutmix` is positive.

    Cutmix's box covers 1 - lambda of the image before it is cut at the border. The label's weight
    is the share of the image outside the box that is left.
    """
    key_which, key_mixup, key_cutmix, key_y, key_x = jax.random.split(key, 5)
    beta = functools.partial(jax.random.beta, shape=(), dtype=jnp.float32)
    lam_mixup = beta(key_mixup, mixup, mixup) if mixup > 0 else jnp.float32(1)
    if cutmix <= 0:
        return Draw(jnp.full((height, width, 1), lam_mixup), lam_mixup)
    side = jnp.sqrt(1.0 - beta(key_cutmix, cutmix, cutmix))
    inside_y, rows = _span(key_y, height, side)
    inside_x, columns = _span(key_x, width, side)
    box = inside_y[:, None, None] & inside_x[None, :, None]
    lam_cutmix = 1.0 - (rows * columns).astype(jnp.float32) / (height * width)
    use_cutmix = jax.random.bernoulli(key_which, jnp.float32(0.5)) if mixup > 0 else True
    return Draw(
        jnp.where(use_cutmix, 1 - box.astype(jnp.float32), lam_mixup),
        jnp.where(use_cutmix, lam_cutmix, lam_mixup),
    )


def _span(key: jax.Array, length: int, side: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mask [length] of the pixels of one axis that are inside the box, and their number."""
    half = (length * side).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, length, jnp.int32)
    low, high = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, length)
    at = jnp.arange(length, dtype=jnp.int32)
    return (at >= low) & (at < high), high - low


def erase(
    key: jax.Array, images: Float[Array, "b y x 3"], rate: float | jax.Array
) -> Float[Array, "b y x 3"]:
    """Replaces one box of each image by standard normal noise, with probability `rate`.

    The box's area and ratio are drawn up to ten times, until it is smaller than the image.
    """
    b, height, width, _ = images.shape
    key_area, key_ratio, key_which, key_top, key_left, key_noise = jax.random.split(key, 6)
    shape = (b, _ATTEMPTS)
    uniform = functools.partial(jax.random.uniform, dtype=jnp.float32)
    area = uniform(key_area, shape, minval=_AREA[0], maxval=_AREA[1]) * height * width
    low, high = jnp.log(jnp.array(_RATIO, jnp.float32))
    ratio = jnp.exp(uniform(key_ratio, shape, minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(v, first, axis=1)[:, 0].astype(jnp.int32) for v in (h, w))
    erased = (uniform(key_which, (b,)) < rate) & fits.any(axis=1)
    top = jax.random.randint(key_top, (b,), 0, jnp.maximum(height - h + 1, 1), jnp.int32)
    left = jax.random.randint(key_left, (b,), 0, jnp.maximum(width - w + 1, 1), jnp.int32)

    def inside(length: int, start: jax.Array, extent: jax.Array) -> jax.Array:
        at = jnp.arange(length, dtype=jnp.int32)[None]
        return (at >= start[:, None]) & (at < (start + extent)[:, None])

    box = inside(height, top, h)[:, :, None] & inside(width, left, w)[:, None, :]
    noise = jax.random.normal(key_noise, images.shape, images.dtype)
    return jnp.where((box & erased[:, None, None])[..., None], noise, images)
