"""Pictures of one white sprite on black, by the generative factors of dSprites.

dSprites (Matthey et al., 2017; deepmind/dsprites-dataset) is every combination of 3 shapes,
6 scales from 0.5 to 1, 40 orientations from 0 to 2 pi, and 32 x 32 positions, drawn 64 x 64 pixels
without antialiasing. The outlines here are our own, since the data set gives factors, not curves.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

FACTORS = {  # name -> number of values, in the order of the data set's index, slowest first
    "label_shape": 3,
    "label_scale": 6,
    "label_orientation": 40,
    "label_x_position": 32,
    "label_y_position": 32,
}
SIDE = 64  # pixels
_RADIUS = 11.0  # pixels from a sprite's centre to its farthest point, at scale 1
_Plane = Float[np.ndarray, "y x"]
_MARGIN = 12.0  # pixels from the border to the outermost centres, so that no sprite is cut


def latents(index: int) -> dict[str, int]:
    """Factor values of one of the 737,280 combinations, numbered as in dSprites."""
    values = np.unravel_index(index, tuple(FACTORS.values()))
    return {name: int(value) for name, value in zip(FACTORS, values, strict=True)}


def draw(
    label_shape: int,
    label_scale: int,
    label_orientation: int,
    label_x_position: int,
    label_y_position: int,
) -> UInt8[np.ndarray, "64 64 1"]:
    """The picture, of 0 and 1: a pixel is 1 where its centre is inside the outline.

    Position 0 is left (x) and top (y); orientation turns the sprite by index * 2 pi / 39, so that
    the first and the last are alike, as in dSprites.
    """
    radius = _RADIUS * (0.5 + 0.1 * label_scale)
    angle = 2 * np.pi * label_orientation / 39
    step = (SIDE - 2 * _MARGIN) / 31
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    x, y = x - _MARGIN - step * label_x_position, y - _MARGIN - step * label_y_position
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    return _OUTLINES[label_shape](u, v).astype(np.uint8)[..., None]


def _square(u: _Plane, v: _Plane) -> Bool[np.ndarray, "y x"]:
    inside: np.ndarray = np.maximum(np.abs(u), np.abs(v)) <= 2**-0.5
    return inside


def _ellipse(u: _Plane, v: _Plane) -> Bool[np.ndarray, "y x"]:
    inside: np.ndarray = u**2 + (2 * v) ** 2 <= 1
    return inside


def _heart(u: _Plane, v: _Plane) -> Bool[np.ndarray, "y x"]:
    """Heart: (x^2 + y^2 - 1)^3 <= x^2 y^3, y upwards, turned about its centre, (0, 0.2935).

    From there its tip (0, -1) is the farthest point.
    """
    x, y = 1.2935 * u, 0.2935 - 1.2935 * v
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


_OUTLINES = (_square, _ellipse, _heart)


def sample(count: int, seed: int) -> list[int]:
    """`count` combinations, drawn without return, whose pictures all differ.

    Different factors can give one picture (a square turned by a right angle), and one picture in
    two splits would be a leak. RandomState's stream is frozen, so the sample is for good.
    """
    order = np.random.RandomState(seed).permutation(np.prod(list(FACTORS.values())))
    seen: set[bytes] = set()
    chosen = []
    for index in order.tolist():
        picture = draw(**latents(index)).tobytes()
        if picture not in seen:
            seen.add(picture)
            chosen.append(index)
        if len(chosen) == count:
            break
    return chosen
