"""Random scenes of one sprite on a background, made on the device. `b` batch, `s` image side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tools.pretrain.data import SIZE, Sprites

IMAGE = 32
PORTRAIT = 200  # numbers in a portrait


def scenes(
    key: Array, sprites: Sprites, classes: Int[Array, " b"], strength: float | Array = 1.0
) -> tuple[Float[Array, "b s s 3"], Float[Array, "b p"]]:
    """Images in [0, 1] of a random sprite of each class, and the sprite itself, small and upright.

    The sprite is turned, scaled, sheared and moved; colours are random, or the picture's own for
    emoji; half of the images are grey; the background is plain, a gradient, or another sprite much
    enlarged; then contrast, blur by a lower resolution, and noise. `strength` from 0 to 1 scales
    all of this: at full strength from the start, the small ViT does not begin to learn.
    """
    b = classes.shape[0]
    keys = iter(jax.random.split(key, 40))

    strength = jnp.asarray(strength)

    def uniform(low=0.0, high=1.0, shape=()):
        return jax.random.uniform(next(keys), (b, *shape), minval=low, maxval=high)

    def chance(p):
        return jax.random.bernoulli(next(keys), p, (b,))

    def pick(classes):
        offset = (uniform() * sprites.count[classes]).astype(jnp.int32)
        number = sprites.first[classes] + jnp.minimum(offset, sprites.count[classes] - 1)
        index = sprites.colour_index[number]
        paint = jnp.where(
            (index >= 0)[:, None, None, None],
            sprites.colour[jnp.maximum(index, 0)] / 255.0,
            uniform(shape=(1, 1, 3)),
        )
        alpha = sprites.alpha[number][..., None] / 255.0
        return jnp.concatenate([paint * alpha, alpha], -1)  # premultiplied

    # Sprite: image coordinates in [-1, 1] -> sprite coordinates.
    scale = jnp.exp(uniform(strength * jnp.log(0.45), 0.1))
    aspect = jnp.exp(strength * uniform(-0.2, 0.2))
    angle = strength * uniform(-0.3, 0.3)
    shear = strength * uniform(-0.2, 0.2)
    reach = strength * jnp.maximum(1.0 - scale, 0.1)[:, None]
    centre = uniform(-1.0, 1.0, (2,)) * reach
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, sin], -1), jnp.stack([-sin, cos], -1)], -2)
    zero = jnp.zeros_like(scale)
    stretch = jnp.stack(
        [
            jnp.stack([1 / (scale * aspect), shear / scale], -1),
            jnp.stack([zero, aspect / scale], -1),
        ],
        -2,
    )
    sprite = pick(classes)
    front = _warp(sprite, stretch @ rotation, centre, small=scale < 0.6)

    # Background.
    other = jnp.flip(classes, 0)
    zoom = uniform(0.3, 0.9)[:, None, None] * jnp.eye(2)
    clutter = _warp(pick(other), zoom, uniform(-1.0, 1.0, (2,)), small=jnp.zeros((b,), bool))
    plain = uniform(shape=(1, 1, 3))
    direction = uniform(-1.0, 1.0, (2,))
    slope = jnp.einsum("ijk,bk->bij", _grid(IMAGE), direction)[..., None] * uniform(
        -0.5, 0.5, (1, 1, 3)
    )
    back = plain + jnp.where(chance(0.4 * strength)[:, None, None, None], slope, 0.0)
    use_clutter = (chance(0.25 * strength) * uniform(0.2, 0.9))[:, None, None, None]
    back = back * (1 - use_clutter * clutter[..., 3:]) + use_clutter * clutter[..., :3]

    image = back * (1 - front[..., 3:]) + front[..., :3]
    # A glyph may have come out in nearly the colour of its ground: spread the luminance.
    grey = image.mean(-1, keepdims=True)
    image = jnp.where(chance(0.6)[:, None, None, None], grey, image)
    low = image.min((1, 2, 3), keepdims=True)
    high = image.max((1, 2, 3), keepdims=True)
    image = (image - low) / jnp.maximum(high - low, 0.05)
    contrast = 1 - strength * uniform(0.0, 0.5, (1, 1, 1))
    contrast = jnp.where(chance(0.4)[:, None, None, None], 1.0, contrast)
    image = image * contrast + (1 - contrast) * uniform(shape=(1, 1, 1))
    image = jnp.where(chance(0.3 * strength)[:, None, None, None], 1 - image, image)
    for factor, p in ((2, 0.2), (4, 0.1)):
        image = jnp.where(chance(p * strength)[:, None, None, None], _coarse(image, factor), image)
    noise = jax.random.normal(next(keys), image.shape) * uniform(0.0, 0.06, (1, 1, 1))
    image = jnp.where(chance(0.5 * strength)[:, None, None, None], image + noise, image)
    return jnp.clip(image, 0.0, 1.0), _portrait(sprite)


def _portrait(sprite: Array) -> Array:
    """[b, 200]: coverage, and coverage times luminance relative to its mean, on 10 x 10 cells."""
    b, n = sprite.shape[0], 10
    cells = sprite.reshape(b, n, SIZE // n, n, SIZE // n, 4).mean((2, 4)).reshape(b, n * n, 4)
    cover, light = cells[..., 3], cells[..., :3].mean(-1)
    mean = light.sum(1, keepdims=True) / jnp.maximum(cover.sum(1, keepdims=True), 1e-3)
    return jnp.concatenate([cover, light - mean * cover], axis=1)


def _grid(side: int) -> Array:
    """[side, side, 2] coordinates (x, y) of pixel centres in [-1, 1]."""
    line = (jnp.arange(side) + 0.5) * 2 / side - 1
    return jnp.stack(jnp.meshgrid(line, line), -1)


def _coarse(image: Array, factor: int) -> Array:
    b, s, _, c = image.shape
    small = image.reshape(b, s // factor, factor, s // factor, factor, c).mean((2, 4))
    return jax.image.resize(small, image.shape, "cubic")


def _warp(sprite: Array, matrix: Array, centre: Array, small: Array) -> Array:
    """Bilinear samples [b, s, s, 4] of sprites; `small` ones from a copy of half the resolution."""
    b = sprite.shape[0]
    half = sprite.reshape(b, SIZE // 2, 2, SIZE // 2, 2, 4).mean((2, 4))
    half = jnp.repeat(jnp.repeat(half, 2, 1), 2, 2)
    sprite = jnp.where(small[:, None, None, None], half, sprite)
    sprite = jnp.pad(sprite, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, -1, 4)
    side = SIZE + 2
    offset = _grid(IMAGE)[None] - centre[:, None, None]
    place = jnp.einsum("bkl,byxl->byxk", matrix, offset)
    place = (place + 1) * SIZE / 2 - 0.5 + 1
    place = jnp.clip(place, 0.0, side - 1.001)
    corner = jnp.floor(place).astype(jnp.int32)
    part = place - corner
    start = (corner[..., 1] * side + corner[..., 0]).reshape(b, -1)

    def take(dy, dx):
        value = jnp.take_along_axis(sprite, (start + dy * side + dx)[..., None], axis=1)
        fy = part[..., 1] if dy else 1 - part[..., 1]
        fx = part[..., 0] if dx else 1 - part[..., 0]
        return value.reshape(b, IMAGE, IMAGE, 4) * (fy * fx)[..., None]

    return take(0, 0) + take(0, 1) + take(1, 0) + take(1, 1)
