"""The preparation of images that each variant's weights were trained with, as data.

A sweep does not depend on it: its config names the preparation (`normalisation`, `resize`).
"""

import dataclasses

from fact_jax.errors import UserError
from fact_jax.images.normalise import NORMALISATIONS


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preparation of images for a ViT.

    Attributes:
      image_size: pixels along a side.
      normalisation: the name of the mean and deviation, of `NORMALISATIONS`.
      resample: 'bicubic' or 'bilinear', the filter of the weights' authors. Images are resized
        bicubically here.
    """

    image_size: int
    normalisation: str
    resample: str = "bicubic"

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel, on the [0, 1] scale."""
        return NORMALISATIONS[self.normalisation][0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel, on the [0, 1] scale."""
        return NORMALISATIONS[self.normalisation][1]


# Sources: google-research/vision_transformer; facebookresearch/dinov2 and mae; the
# preprocessor_config.json of facebook/dinov3-*, openai/clip-*, google/siglip2-*
# and microsoft/beit-*.
_GOOGLE = Preprocessing(224, "inception", "bilinear")
_IMAGENET = Preprocessing(224, "imagenet")
_DINOV3 = Preprocessing(224, "imagenet", "bilinear")
_CLIP = Preprocessing(224, "clip")
_BEIT = Preprocessing(224, "inception")
_SIGLIP = Preprocessing(224, "inception", "bilinear")
_VITS = ("ti16", "s16", "s32", "b16", "b32", "l16", "l32", "h14")
_SIZES = ("s14", "b14", "l14", "s14_reg", "b14_reg", "l14_reg")

PREPROCESSING: dict[str, Preprocessing] = {
    **{f"vit_{size}": _GOOGLE for size in _VITS},
    "vit_mini": Preprocessing(32, "imagenet"),
    **{f"dinov2_{size}": _IMAGENET for size in _SIZES},
    **{f"dinov3_{size}": _DINOV3 for size in ("s16", "s16plus", "b16", "l16", "h16plus")},
    **{f"clip_{size}": _CLIP for size in ("b16", "b32", "l14")},
    **{f"siglip2_{size}": _SIGLIP for size in ("b16", "so400m14")},
    "mae_b16": _IMAGENET,
    "beit_b16": _BEIT,
    "beit_l16": _BEIT,
}


def preprocessing_of(variant: str) -> Preprocessing:
    """The preparation that a variant's published weights were trained with.

    Raises:
      UserError: there is none of this name.
    """
    if variant not in PREPROCESSING:
        raise UserError(
            f"No preprocessing is known for the variant {variant!r}; known are those of "
            f"{', '.join(PREPROCESSING)}. State image_size and normalisation yourself."
        )
    return PREPROCESSING[variant]
