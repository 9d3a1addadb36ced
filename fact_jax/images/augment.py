"""The augmented training view of NOAH's few-shot runs: crop, flip, RandAugment, on Pillow images.

Source: timm 0.4.12, `create_transform(is_training=True, auto_augment='rand-m9-mstd0.5-inc1',
interpolation='bicubic')`. What timm does after normalisation (erasing, mixup, cutmix) is in
`fact_jax/training/mixing.py`.
"""

import math

import numpy as np
from PIL import Image

from fact_jax.images.randaugment import rand_augment

_AREA = (0.08, 1.0)  # of the image
_RATIO = (3 / 4, 4 / 3)  # width by height


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (pixels) of a random crop.

    Ten draws of area and ratio are tried, then the largest centre crop whose ratio is allowed is
    taken: torchvision's and timm's `RandomResizedCrop.get_params`.
    """
    logs = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(10):
        area = rng.uniform(*_AREA) * (width * height)
        ratio = math.exp(rng.uniform(*logs))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(height * _RATIO[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def augment(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """One augmented view, uint8 [size, size, 3], of an RGB image of any size."""
    view = image.crop(crop_box(*image.size, rng))
    view = view.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(rand_augment(view, rng))
