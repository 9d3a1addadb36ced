"""Small pictures of solids on a floor, after CLEVR: three shapes, two sizes, eight colours.

CLEVR (Johnson et al., 2017; facebookresearch/clevr-dataset-gen) renders with Blender. This is a ray
caster of our own with CLEVR's camera, positions and colours. It only adds, multiplies, divides and
takes square roots in float64, so that every machine draws the same pixels.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from fact_jax.data.labels import CLEVR_DISTANCES, bucket
from fact_jax.data.offline import rays
from fact_jax.data.offline.rays import Plane, Rays, Vector, View

SIDE = 64  # pixels of a picture
LEAST, MOST = 3, 10  # solids of a scene
COUNTS = tuple(str(count) for count in range(LEAST, MOST + 1))
DISTANCES = ("below 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10")
_SIZES = (0.45, 0.8)  # half heights; CLEVR's 0.35 and 0.7 are too small for 32 pixels
_AREA, _GAP = 3.0, 0.25  # half width of the square of centres, least gap between two solids
_CAMERA, _JITTER = (7.36, -6.93, 4.96), 0.5
_LENS = (1.3, 1.3 * 1.4)  # focal lengths; CLEVR: 35 / 32, and pictures of 3:2 squeezed to squares
_LIGHT = (0.36, -0.48, 0.8)  # the direction to the light
_VISIBLE = 10  # pixels that each solid shows at least
_TRIES = 50  # places of a solid before the scene is drawn anew
_COLOURS = (
    *((87, 87, 87), (173, 35, 35), (42, 75, 215), (29, 105, 20)),
    *((129, 74, 25), (129, 38, 192), (41, 208, 208), (255, 238, 51)),
)
_MEET = (rays.meet_cube, rays.meet_sphere, rays.meet_cylinder)
# Half heights from a solid's centre, and from its axis, to its farthest point.
_BOUND, _AXIS = (math.sqrt(3), 1.0, math.sqrt(2)), (math.sqrt(2), 1.0, 1.0)


class Solid(NamedTuple):
    """A solid on the floor.

    Attributes:
      shape: 0 cube, 1 sphere, 2 cylinder.
      size: half of the height.
      x, y: where it stands.
      cos, sin: how it is turned about its axis.
      colour: number of its colour.
      metal: whether it shines.
    """

    shape: int
    size: float
    x: float
    y: float
    cos: float
    sin: float
    colour: int
    metal: bool

    @property
    def centre(self) -> Vector:
        return (self.x, self.y, self.size)


class Scene(NamedTuple):
    """A picture, uint8 [64, 64, 3], and what is on it."""

    image: UInt8[np.ndarray, "64 64 3"]
    view: View
    solids: tuple[Solid, ...]

    @property
    def nearest(self) -> float:
        """Depth of the nearest solid: along the line of sight, to its centre, as in CLEVR."""
        return min(_depth(self.view, solid) for solid in self.solids)


def sample(count: int, seed: int) -> list[Scene]:
    """`count` scenes of 3 to 10 solids whose pictures all differ.

    RandomState's stream is frozen, so the sample is for good.
    """
    random = np.random.RandomState(seed)
    chosen: dict[bytes, Scene] = {}
    while len(chosen) < count:
        number = LEAST + _below(random, MOST - LEAST + 1)
        while (scene := _try_scene(random, number)) is None:
            pass
        chosen.setdefault(scene.image.tobytes(), scene)
    return list(chosen.values())


def distance_class(scene: Scene) -> int:
    """The class of the nearest solid's depth, in the bins of VTAB's clevr_dist."""
    return bucket(scene.nearest, CLEVR_DISTANCES)


def _below(random: np.random.RandomState, count: int) -> int:
    """A number from 0 to count - 1."""
    return int(random.random_sample() * count)


def _try_scene(random: np.random.RandomState, number: int) -> Scene | None:
    """A scene of so many solids; None if one found no room or is hidden."""
    x, y, z = (c + _JITTER * (2 * random.random_sample() - 1) for c in _CAMERA)
    view = rays.look_from((x, y, z))
    solids: list[Solid] = []
    for _ in range(number):
        for _ in range(_TRIES):
            solid = _random_solid(random)
            if all(_apart(solid, other) for other in solids):
                solids.append(solid)
                break
        else:
            return None
    image, shown = draw(view, solids)
    return Scene(image, view, tuple(solids)) if shown.min() >= _VISIBLE else None


def _random_solid(random: np.random.RandomState) -> Solid:
    shape, size = _below(random, 3), _SIZES[_below(random, 2)]
    x, y = (_AREA * (2 * random.random_sample() - 1) for _ in range(2))
    half = 0.4142 * (2 * random.random_sample() - 1)  # tangent of half an angle up to 45 degrees
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    size = size / math.sqrt(2) if shape == 0 else size
    return Solid(shape, size, x, y, cos, sin, _below(random, 8), _below(random, 2) == 1)


def _apart(a: Solid, b: Solid) -> bool:
    x, y = a.x - b.x, a.y - b.y
    least = _GAP + a.size * _AXIS[a.shape] + b.size * _AXIS[b.shape]
    return x * x + y * y >= least * least


def _depth(view: View, solid: Solid) -> float:
    return rays.dot(rays.minus(solid.centre, view.place), view.forward)


def draw(
    view: View, solids: list[Solid]
) -> tuple[UInt8[np.ndarray, "64 64 3"], Int[np.ndarray, " n"]]:
    """The picture, one ray a pixel, and how many pixels each solid shows."""
    directions = _rays(view)
    floor = _floor(view, directions, solids)
    image = np.stack([_levels(floor * share) for share in (0.92, 0.92, 0.9)], -1)
    depth = np.full((SIDE, SIDE), np.inf)
    owner = np.full((SIDE, SIDE), len(solids))
    for number, solid in enumerate(solids):
        box = _box(view, solid)
        hits = _meet(view, Rays(*(plane[box] for plane in directions)), solid)
        nearer = hits.far < depth[box]
        np.copyto(depth[box], hits.far, where=nearer)
        np.copyto(owner[box], number, where=nearer)
        np.copyto(image[box], _light(view, solid, hits), where=nearer[..., None])
    return image, np.bincount(owner.ravel(), minlength=len(solids))[:-1]


def _rays(view: View) -> Rays:
    """Rays through the pixels."""
    across = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    v, u = -across[:, None] / _LENS[1], across[None, :] / _LENS[0]
    axes = zip(view.forward, view.right, view.up, strict=True)
    return Rays(*(f + u * r + v * w for f, r, w in axes))


def _levels(brightness: Plane) -> UInt8[np.ndarray, "*pixels"]:
    """Levels 0 to 255 from brightness 0 to 1; more is 255."""
    levels: UInt8[np.ndarray, "*pixels"]
    levels = np.floor(255 * np.minimum(brightness, 1.0) + 0.5).astype(np.uint8)
    return levels


def _floor(view: View, directions: Rays, solids: list[Solid]) -> Float[np.ndarray, "y x"]:
    """Brightness of the floor: darker far from the middle, and where a solid is in the light."""
    below = np.minimum(directions.z, -0.05)  # the horizon is out of sight
    far = -view.place[2] / below
    x, y = view.place[0] + far * directions.x, view.place[1] + far * directions.y
    bright = 0.4 + 0.5 / (1 + 0.02 * (x * x + y * y))
    shade = np.zeros(x.shape, bool)
    for solid in solids:
        # The floor's nearest point to the ray of light through the centre of the solid's ball.
        size = solid.size * (1.1 if solid.shape == 0 else 1.0)
        lean = solid.size / _LIGHT[2]
        ahead = (x - solid.x + lean * _LIGHT[0], y - solid.y + lean * _LIGHT[1])
        along = ahead[0] * _LIGHT[0] + ahead[1] * _LIGHT[1]
        shade |= ahead[0] * ahead[0] + ahead[1] * ahead[1] - along * along < size * size
    floor: Plane = np.where(shade, 0.55 * bright, bright)
    return floor


def _box(view: View, solid: Solid) -> tuple[slice, slice]:
    """Rows and columns of the picture that hold the solid."""
    offset, radius = rays.minus(solid.centre, view.place), solid.size * _BOUND[solid.shape]
    depth = rays.dot(offset, view.forward)
    slices = []
    for axis, lens, sign in ((view.up, _LENS[1], -1), (view.right, _LENS[0], 1)):
        middle = sign * rays.dot(offset, axis) / depth * lens
        reach = radius * lens / (depth - radius) * 1.1
        ends = (int(SIDE * (0.5 + middle + edge)) for edge in (-reach, reach))
        slices.append(slice(*(min(max(end, 0), SIDE) for end in ends)))
    return slices[0], slices[1]


def _meet(view: View, patch: Rays, solid: Solid) -> rays.Hits:
    """The rays' hits in the solid's own frame."""
    turn = functools.partial(rays.turned, cos=solid.cos, sin=solid.sin)
    start = rays.minus(view.place, solid.centre)
    x, y = turn(start[0], start[1])
    turned = Rays(*turn(patch.x, patch.y), patch.z)
    return _MEET[solid.shape]((x, y, start[2]), turned, solid.size)


def _light(view: View, solid: Solid, hits: rays.Hits) -> UInt8[np.ndarray, "y x 3"]:
    """Red, green and blue of the solid's surface, levels 0 to 255."""
    light = (*rays.turned(_LIGHT[0], _LIGHT[1], solid.cos, solid.sin), _LIGHT[2])
    to_camera = rays.unit(rays.minus(view.place, solid.centre))
    eye = (*rays.turned(to_camera[0], to_camera[1], solid.cos, solid.sin), to_camera[2])
    half = rays.unit((light[0] + eye[0], light[1] + eye[1], light[2] + eye[2]))
    matt = np.maximum(hits.x * light[0] + hits.y * light[1] + hits.z * light[2], 0.0)
    shine = np.maximum(hits.x * half[0] + hits.y * half[1] + hits.z * half[2], 0.0)
    for _ in range(5 if solid.metal else 3):  # to the power of 32 or 8
        shine = shine * shine
    gloss = shine * (0.7 if solid.metal else 0.12)
    matt = 0.35 + 0.75 * matt
    return np.stack([_levels(c / 255 * matt + gloss) for c in _COLOURS[solid.colour]], -1)
