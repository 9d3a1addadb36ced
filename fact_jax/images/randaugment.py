"""RandAugment as timm 0.4.12 reads 'rand-m9-mstd0.5-inc1', on Pillow images.

Source: timm 0.4.12, `data/auto_augment.py` (with `transforms_factory.py` for fill colour and
interpolation). Parity with timm's own functions is tested in tests/parity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)  # round(255 x ImageNet mean): what a geometric operation brings into view
_MOST = 10.0  # magnitudes are 0 to 10


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


@dataclass(frozen=True)
class Operation:
    """One operation: ``apply(image, level(magnitude))``.

    Attributes:
      apply: from an RGB image and the level to an RGB image of the same size.
      level: from a magnitude, 0 to 10, to the operation's argument.
      signed: the level's sign is drawn at random.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    level: Callable[[float], float] = lambda magnitude: 0.0
    signed: bool = False


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """The factor 1 changes nothing, 1 - v goes towards the degenerate image, 1 + v away from it."""
    return Operation(lambda i, v: kind(i).enhance(1.0 + v), lambda m: m / _MOST * 0.9, signed=True)


OPERATIONS: dict[str, Operation] = {  # names and order are timm's `_RAND_INCREASING_TRANSFORMS`
    "AutoContrast": Operation(lambda i, v: ImageOps.autocontrast(i)),
    "Equalize": Operation(lambda i, v: ImageOps.equalize(i)),
    "Invert": Operation(lambda i, v: ImageOps.invert(i)),
    "Rotate": Operation(_rotate, lambda m: m / _MOST * 30.0, signed=True),
    "PosterizeIncreasing": Operation(
        lambda i, v: _posterize(i, int(v)), lambda m: 4 - int(m / _MOST * 4)
    ),
    "SolarizeIncreasing": Operation(
        lambda i, v: ImageOps.solarize(i, int(v)), lambda m: 256 - int(m / _MOST * 256)
    ),
    "SolarizeAdd": Operation(lambda i, v: _solarize_add(i, int(v)), lambda m: int(m / _MOST * 110)),
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": Operation(
        lambda i, v: _affine(i, 1, v, 0, 0, 1, 0), lambda m: m / _MOST * 0.3, signed=True
    ),
    "ShearY": Operation(
        lambda i, v: _affine(i, 1, 0, 0, v, 1, 0), lambda m: m / _MOST * 0.3, signed=True
    ),
    "TranslateXRel": Operation(
        lambda i, v: _affine(i, 1, 0, v * i.width, 0, 1, 0),
        lambda m: m / _MOST * 0.45,
        signed=True,
    ),
    "TranslateYRel": Operation(
        lambda i, v: _affine(i, 1, 0, 0, 0, 1, v * i.height),
        lambda m: m / _MOST * 0.45,
        signed=True,
    ),
}


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    magnitude: float = 9.0,
    std: float = 0.5,
    layers: int = 2,
) -> Image.Image:
    """`layers` operations drawn with return, each skipped with probability 1/2.

    An operation's magnitude is normal around `magnitude` with deviation `std`, clipped to 0 to 10.
    """
    operations = list(OPERATIONS.values())
    for index in rng.integers(len(operations), size=layers):
        if rng.random() > 0.5:
            continue
        operation = operations[index]
        level = operation.level(float(np.clip(rng.normal(magnitude, std), 0.0, _MOST)))
        if operation.signed and rng.random() > 0.5:
            level = -level
        image = operation.apply(image, level)
    return image
