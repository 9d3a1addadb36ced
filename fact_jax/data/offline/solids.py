"""Grey pictures of made-up solids on a turntable, after smallNORB: which way does a solid face?

A solid is one of five kinds (animal, chair, lorry, aeroplane, crane), put together of boxes whose
proportions are drawn. As in smallNORB, pictures vary in azimuth, elevation and light.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fact_jax.data.offline import rays
from fact_jax.data.offline.rays import Rays, Vector, View

SIDE = 64  # pixels of a picture
AZIMUTHS = tuple(f"{degrees} degrees" for degrees in range(0, 360, 20))
KINDS = ("animal", "chair", "lorry", "aeroplane", "crane")
PICTURES = 20  # of a solid
_JITTER = 5.0  # degrees to both sides of the middle of a class
_ELEVATIONS = (25.0, 32.0, 39.0, 46.0, 53.0)  # degrees
_LIGHTS = ((0.0, -0.6, 0.8), (0.64, -0.48, 0.6), (-0.64, -0.48, 0.6), (0.48, 0.0, 0.6))
_DISTANCE, _LENS = 5.0, 1.9
_GROUND = 235  # grey level


class Box(NamedTuple):
    """A box of a solid: its middle and its half sides. Solids face along x, and z is up."""

    middle: Vector
    half: Vector


class Picture(NamedTuple):
    """A picture, uint8 [64, 64, 1], of one solid.

    Attributes:
      image: the picture.
      azimuth: class of the direction that the solid faces.
      kind: number of its kind.
      solid: number of the solid, different for all solids.
    """

    image: UInt8[np.ndarray, "64 64 1"]
    azimuth: int
    kind: int
    solid: int


def sample(counts: tuple[int, ...], seed: int) -> list[Picture]:
    """20 pictures of each solid, all different: first of `counts[0]` solids a kind, and so on.

    The pictures of each count are shuffled among themselves, so that counts can be splits.
    RandomState's stream is frozen, so the sample is for good.
    """
    random = np.random.RandomState(seed)
    pictures: list[Picture] = []
    seen: set[bytes] = set()
    number = 0
    for count in counts:
        part = []
        classes = np.arange(count * len(KINDS) * PICTURES) % len(AZIMUTHS)
        azimuths = iter(random.permutation(classes).tolist())
        for kind in list(range(len(KINDS))) * count:
            boxes = build(kind, random)
            for azimuth in (next(azimuths) for _ in range(PICTURES)):
                while (image := _view(boxes, azimuth, random)).tobytes() in seen:
                    pass
                seen.add(image.tobytes())
                part.append(Picture(image, azimuth, kind, number))
            number += 1
        pictures += [part[i] for i in random.permutation(len(part)).tolist()]
    return pictures


def build(kind: int, random: np.random.RandomState) -> list[Box]:
    """A solid of a kind with proportions of its own; its middle is about the origin."""
    return _BUILD[kind](random.random_sample(8).tolist())


def _between(least: float, most: float, share: float) -> float:
    return least + (most - least) * share


def _animal(share: list[float]) -> list[Box]:
    """Body, four legs, a head in front and a tail behind."""
    long, wide, high = _between(0.5, 0.75, share[0]), _between(0.18, 0.3, share[1]), 0.2
    leg, head = _between(0.15, 0.35, share[2]), _between(0.15, 0.24, share[3])
    neck, tail = _between(0.1, 0.45, share[4]), _between(0.1, 0.3, share[5])
    feet = [(x, y) for x in (-long + 0.08, long - 0.08) for y in (-wide + 0.08, wide - 0.08)]
    return [
        Box((0.0, 0.0, 0.0), (long, wide, high)),
        Box((long + head, 0.0, neck), (head, 0.8 * head, head)),
        Box((-long - tail, 0.0, 0.12), (tail, 0.05, 0.05)),
        *(Box((x, y, -high - leg), (0.08, 0.08, leg)) for x, y in feet),
    ]


def _chair(share: list[float]) -> list[Box]:
    """Seat, four legs and a back behind."""
    long, wide = _between(0.4, 0.6, share[0]), _between(0.35, 0.6, share[1])
    leg, back = _between(0.2, 0.4, share[2]), _between(0.3, 0.6, share[3])
    thick = _between(0.05, 0.12, share[4])
    feet = [(x, y) for x in (-long + 0.07, long - 0.07) for y in (-wide + 0.07, wide - 0.07)]
    return [
        Box((0.0, 0.0, 0.0), (long, wide, thick)),
        Box((-long + thick, 0.0, thick + back), (thick, wide, back)),
        *(Box((x, y, -thick - leg), (0.07, 0.07, leg)) for x, y in feet),
    ]


def _lorry(share: list[float]) -> list[Box]:
    """Chassis, a cab in front and a load behind."""
    long, wide = _between(0.75, 1.0, share[0]), _between(0.25, 0.4, share[1])
    cab, load = _between(0.2, 0.32, share[2]), _between(0.1, 0.4, share[3])
    tall = _between(0.2, 0.3, share[4])
    behind = long - cab - 0.08
    return [
        Box((0.0, 0.0, -0.25), (long, 0.8 * wide, 0.1)),
        Box((long - cab, 0.0, tall - 0.15), (cab, wide, tall)),
        Box((behind - long, 0.0, load - 0.15), (behind, wide, load)),
    ]


def _aeroplane(share: list[float]) -> list[Box]:
    """Fuselage, wings before the middle, tail and fin behind."""
    long, thick = _between(0.75, 1.0, share[0]), _between(0.1, 0.18, share[1])
    span, chord = _between(0.6, 1.0, share[2]), _between(0.12, 0.25, share[3])
    place, fin = _between(0.0, 0.25, share[4]), _between(0.15, 0.3, share[5])
    tail = _between(0.25, 0.4, share[6])
    return [
        Box((0.0, 0.0, 0.0), (long, thick, thick)),
        Box((place, 0.0, 0.0), (chord, span, 0.04)),
        Box((-long + 0.12, 0.0, 0.05), (0.12, tail, 0.04)),
        Box((-long + 0.12, 0.0, thick + fin), (0.12, 0.04, fin)),
    ]


def _crane(share: list[float]) -> list[Box]:
    """Foot, tower, a long arm to the front and a weight behind."""
    foot, tower = _between(0.25, 0.45, share[0]), _between(0.35, 0.6, share[1])
    thick, arm = _between(0.08, 0.16, share[2]), _between(0.45, 0.65, share[3])
    weight = _between(0.1, 0.18, share[4])
    return [
        Box((0.0, 0.0, -tower - 0.1), (foot, foot, 0.1)),
        Box((0.0, 0.0, 0.0), (thick, thick, tower)),
        Box((arm, 0.0, tower), (arm, 0.07, 0.07)),
        Box((-thick - weight, 0.0, tower), (weight, weight, weight)),
    ]


_BUILD = (_animal, _chair, _lorry, _aeroplane, _crane)


def _view(
    boxes: list[Box], azimuth: int, random: np.random.RandomState
) -> UInt8[np.ndarray, "64 64 1"]:
    """A picture of a solid in an azimuth of the class, elevation and light drawn."""
    jitter, height, light = random.random_sample(3).tolist()
    degrees = 360 / len(AZIMUTHS) * azimuth + _JITTER * (2 * jitter - 1)
    cos, sin = _cos_sin(degrees)
    flat, up = _cos_sin(_ELEVATIONS[int(height * len(_ELEVATIONS))])
    view = rays.look_from((0.0, -_DISTANCE * flat, _DISTANCE * up))
    return draw(boxes, view, (cos, sin), _LIGHTS[int(light * len(_LIGHTS))])


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Cosine and sine to nine decimals, where all libraries of mathematics agree."""
    radians = degrees * np.pi / 180
    return round(float(np.cos(radians)), 9), round(float(np.sin(radians)), 9)


def draw(
    boxes: list[Box], view: View, facing: tuple[float, float], light: Vector
) -> UInt8[np.ndarray, "64 64 1"]:
    """The picture of a solid that is turned to `facing`, the cosine and sine of its azimuth."""
    across = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) / _LENS
    u, v = across[None, :], -across[:, None]
    axes = zip(view.forward, view.right, view.up, strict=True)
    x, y, z = (f + u * r + v * w for f, r, w in axes)
    turned = Rays(*rays.turned(x, y, *facing), z)
    start = (*rays.turned(view.place[0], view.place[1], *facing), view.place[2])
    lit = (*rays.turned(light[0], light[1], *facing), light[2])
    far, grey = np.full(x.shape, np.inf), np.full(x.shape, _GROUND / 255)
    for box in boxes:
        hits = rays.meet_box(rays.minus(start, box.middle), turned, box.half)
        nearer = hits.far < far
        matt = np.maximum(hits.x * lit[0] + hits.y * lit[1] + hits.z * lit[2], 0.0)
        np.copyto(far, hits.far, where=nearer)
        np.copyto(grey, 0.12 + 0.62 * matt, where=nearer)
    return np.floor(255 * grey + 0.5).astype(np.uint8)[..., None]
