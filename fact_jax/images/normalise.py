"""Normalisation: stored pixels to the network's input, inside `jit`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fact_jax.errors import UserError

# Mean and standard deviation per channel, on the [0, 1] scale. 'imagenet' is what FacT and NOAH
# use, 'inception' ([-1, 1]) what the ViT weights were pre-trained with, 'clip' is of OpenAI's
# CLIP, 'none' leaves [0, 1].
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def check_normalisation(name: str) -> str:
    """`name` itself, or a UserError that lists the choices."""
    if name not in NORMALISATIONS:
        raise UserError(
            f"normalisation is {name!r}; expected one of {', '.join(map(repr, NORMALISATIONS))}."
        )
    return name


def normalise(images: UInt8[Array | np.ndarray, "b y x 3"], name: str) -> Float[Array, "b y x 3"]:
    """Turns uint8 pixels into the network's float32 input, ``(pixel / 255 - mean) / std``.

    Args:
      images: pixels from 0 to 255; one grey channel becomes three.
      name: 'imagenet', 'inception' ([-1, 1]), 'clip' or 'none' ([0, 1]).

    Raises:
      UserError: the pixels are floats, which may be normalised already, or the number of channels
        or the name is another one.
    """
    kind: Any = getattr(images, "dtype", type(images).__name__)
    if isinstance(kind, str) or not jnp.issubdtype(kind, jnp.integer):
        raise UserError(f"images is of type {kind}; expected uint8, pixels from 0 to 255.")
    if images.shape[-1:] not in ((1,), (3,)):
        raise UserError(
            f"images has shape {' x '.join(map(str, images.shape))}; expected 3 channels, or one "
            "of grey, in the last axis."
        )
    mean, std = (
        jnp.asarray(values, jnp.float32).reshape([1] * (images.ndim - 1) + [3])
        for values in NORMALISATIONS[check_normalisation(name)]
    )
    return (jnp.asarray(images, jnp.float32) / 255.0 - mean) / std
