"""Where rays meet solids: the geometry of `scenes.py` and `solids.py`.

Float64 numbers are only added, multiplied, divided and rooted. IEEE 754 rounds these exactly, so
that every machine gets the same.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

Plane: TypeAlias = Float[np.ndarray, "*pixels"]
Vector: TypeAlias = tuple[float, float, float]


class Rays(NamedTuple):
    """Directions of rays, one a pixel, that start at one place."""

    x: Plane
    y: Plane
    z: Plane


class Hits(NamedTuple):
    """Where rays meet a solid first.

    Attributes:
      far: how many directions away; infinite where a ray misses the solid.
      x, y, z: the normal of the surface there, of length 1.
    """

    far: Plane
    x: Plane
    y: Plane
    z: Plane


class View(NamedTuple):
    """A camera: its place, and its axes to the right, up and forward, of length 1."""

    place: Vector
    right: Vector
    up: Vector
    forward: Vector


def dot(a: Vector, b: Vector) -> float:
    """The inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vector) -> Vector:
    """The vector of this direction and of length 1."""
    length = math.sqrt(dot(a, a))
    return (a[0] / length, a[1] / length, a[2] / length)


def minus(a: Vector, b: Vector) -> Vector:
    """The difference."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def look_from(place: Vector) -> View:
    """The camera at a place, looking at the origin with the horizon level."""
    forward = unit(minus((0.0, 0.0, 0.0), place))
    right = unit((forward[1], -forward[0], 0.0))
    up = (
        right[1] * forward[2] - right[2] * forward[1],
        right[2] * forward[0] - right[0] * forward[2],
        right[0] * forward[1] - right[1] * forward[0],
    )
    return View(place, right, up, forward)


def turned(x: Any, y: Any, cos: float, sin: float) -> tuple[Any, Any]:
    """Numbers or planes x and y, as a frame sees them that is turned by the angle of cos, sin."""
    return cos * x + sin * y, cos * y - sin * x


def meet_sphere(start: Vector, rays: Rays, size: float) -> Hits:
    """Rays from `start` against the sphere of radius `size` about the origin."""
    a = rays.x * rays.x + rays.y * rays.y + rays.z * rays.z
    b = start[0] * rays.x + start[1] * rays.y + start[2] * rays.z
    root = b * b - a * (dot(start, start) - size * size)
    far = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0.0))) / a, np.inf)
    return Hits(far, *(np.where(root > 0, n, 0.0) for n in _places(start, rays, far, 1 / size)))


def meet_cylinder(start: Vector, rays: Rays, size: float) -> Hits:
    """Rays from above against the upright cylinder of radius and half height `size`."""
    a = rays.x * rays.x + rays.y * rays.y
    b = start[0] * rays.x + start[1] * rays.y
    root = b * b - a * (start[0] * start[0] + start[1] * start[1] - size * size)
    side = (-b - np.sqrt(np.maximum(root, 0.0))) / a
    on_side = (root > 0) & (np.abs(start[2] + side * rays.z) <= size)
    lid = (size - start[2]) / rays.z
    x, y = start[0] + lid * rays.x, start[1] + lid * rays.y
    on_lid = x * x + y * y <= size * size
    far = np.where(on_lid, lid, np.where(on_side, side, np.inf))
    x, y, _ = _places(start, rays, np.where(on_side, side, 0.0), 1 / size)
    return Hits(far, np.where(on_lid, 0.0, x), np.where(on_lid, 0.0, y), 1.0 * on_lid)


def meet_box(start: Vector, rays: Rays, half: Vector) -> Hits:
    """Rays against the upright box about the origin whose half sides are `half`."""
    near, signs = [], []
    out = np.full_like(rays.x, np.inf)
    for place, ray, end in zip(start, rays, half, strict=True):
        first, second = (-end - place) / ray, (end - place) / ray
        near.append(np.minimum(first, second))
        out = np.minimum(out, np.maximum(first, second))
        signs.append(np.where(ray < 0, 1.0, -1.0))
    enter = np.maximum(np.maximum(near[0], near[1]), near[2])
    normals = [np.where(enter == n, sign, 0.0) for n, sign in zip(near, signs, strict=True)]
    return Hits(np.where(enter < out, enter, np.inf), *normals)


def meet_cube(start: Vector, rays: Rays, size: float) -> Hits:
    """Rays against the upright cube of half side `size` about the origin."""
    return meet_box(start, rays, (size, size, size))


def _places(start: Vector, rays: Rays, far: Plane, scale: float) -> tuple[Plane, Plane, Plane]:
    finite = np.where(far < np.inf, far, 0.0)
    x, y, z = ((p + finite * r) * scale for p, r in zip(start, rays, strict=True))
    return x, y, z
