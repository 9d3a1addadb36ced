"""Label formulas of the VTAB-1K tasks: from one decoded TFDS example (numpy values) to its class.

Source: google-research/task_adaptation d7630d3, `data/*.py`. Each function takes the example as
its first argument; tasks bind the rest with `functools.partial`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

# As TFDS gives it, by feature: NumPy values, an encoded image, mappings for features of features.
Example: TypeAlias = Mapping[str, Any]

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = 3  # types 0, 1, 2 are Car, Van, Truck
KITTI_NO_VEHICLE = 1000.0  # metres; beyond the last threshold, so class 3


def plain(example: Example, feature: str = "label") -> int:
    """The class stored in one feature."""
    return int(example[feature])


def binned(example: Example, feature: str, width: float) -> int:
    """floor(feature / width): dSprites has 32 x-positions in bins of 2, 40 orientations of 2.5."""
    return int(np.floor(example[feature] / width))


def object_count(example: Example, least: int = 3) -> int:
    """CLEVR: number of objects (3 to 10) minus the smallest number."""
    return len(example["objects"]["pixel_coords"]) - least


def bucket(distance: float | np.floating, thresholds: Sequence[float]) -> int:
    """Largest i with thresholds[i] < distance, in float32 as TensorFlow compares; -1 if none."""
    return int(np.sum(np.asarray(thresholds, np.float32) < np.float32(distance))) - 1


def nearest_object(example: Example) -> int:
    """CLEVR: bucket of the smallest camera distance (third pixel coordinate)."""
    return bucket(np.min(example["objects"]["pixel_coords"][:, 2]), CLEVR_DISTANCES)


def nearest_vehicle(example: Example) -> int:
    """KITTI: bucket of the smallest z (metres) of a car, van or truck; 3 where there is none."""
    objects = example["objects"]
    depths = objects["location"][:, 2][objects["type"] < KITTI_VEHICLES]
    return bucket(np.min(depths, initial=KITTI_NO_VEHICLE), KITTI_DISTANCES)
