"""Files beside a model that say its labels and its preprocessing: Hugging Face's and our own.

PEFT's adapters have neither labels nor preprocessing (peft issue 1486), so that ours have
`fact_jax.json`: the entries of a factor file's metadata that no adapter holds.
"""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.guards import MAX_CLASS_NAME, MAX_CONFIG_BYTES, MAX_METADATA
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between
from fact_jax.images.normalise import NORMALISATIONS
from fact_jax.images.pipeline import RESIZES, resized_side

OURS = "fact_jax.json"
PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # Pillow's number

Triple = tuple[float, float, float]


class _Preprocessor(TypedDict, total=False):
    image_mean: Triple | None
    image_std: Triple | None
    do_normalize: bool | None
    do_center_crop: bool | None
    size: Any
    crop_size: Any


class _Labels(TypedDict, total=False):
    id2label: dict[str, Annotated[str, Between(0, MAX_CLASS_NAME)]] | None


class Ours(TypedDict, total=False):
    """The entries of `fact_jax.json`, as in a factor file's metadata."""

    vit: dict[str, Any]
    variant: str | None
    weights_sha256: str | None
    normalisation: str | None
    image_size: Annotated[int, Between(1, 4096)] | None
    jpeg_quality: Annotated[int, Between(1, 95)] | None
    task: str | None
    class_names: list[Annotated[str, Between(0, MAX_CLASS_NAME)]] | None
    multi_label: bool
    resize: str


def json_bytes(value: Any) -> bytes:
    """A JSON file that people read, too."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="replace")


def preprocessor(metadata: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: bicubic to a square, then normalised.

    A task that was trained on the middle of larger squares (`resize` 'crop') says so.
    """
    side = metadata.get("image_size") or image_size
    resized, crop = side, {}
    if metadata.get("resize") == "crop":
        resized = resized_side(side)
        crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    mean, std = NORMALISATIONS[metadata.get("normalisation") or "imagenet"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized, "width": resized},
        **crop,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def labels(metadata: dict[str, Any], num_classes: int) -> list[str]:
    """Names of the classes; "0", "1", ... where the factor file has none."""
    return list(metadata.get("class_names") or map(str, range(num_classes)))


def read_beside(folder: Path, num_classes: int) -> dict[str, Any]:
    """Metadata entries that the JSON files of a folder give, ours before Hugging Face's.

    Raises:
      UserError: one of them is damaged, or names another number of classes.
    """
    metadata: dict[str, Any] = {}
    if (path := folder / "config.json").is_file():
        stated = read_json(path, schema=_Labels, max_bytes=MAX_METADATA, allow_nan=True)
        if names := stated.get("id2label"):
            if sorted(names) != sorted(map(str, range(len(names)))):
                raise UserError(f"{path}: id2label does not number the classes from 0.")
            metadata["class_names"] = [names[str(i)] for i in range(len(names))]
    if (path := folder / PREPROCESSOR).is_file():
        stated = read_json(path, schema=_Preprocessor, max_bytes=MAX_CONFIG_BYTES, allow_nan=True)
        metadata |= _preprocessing(path, stated)
    if (path := folder / OURS).is_file():
        metadata |= read_json(path, schema=Ours, max_bytes=MAX_METADATA)
    names = metadata.get("class_names")
    if names is not None and len(names) != num_classes:
        raise UserError(
            f"{folder} names {len(names)} classes, and its head has {num_classes}. Use files that "
            "belong together."
        )
    return metadata


def _preprocessing(path: Path, stated: _Preprocessor) -> dict[str, Any]:
    """Normalisation and image size of a `preprocessor_config.json`."""
    found: dict[str, Any] = {}
    mean, std = stated.get("image_mean"), stated.get("image_std")
    if stated.get("do_normalize") is False:
        found["normalisation"] = "none"
    elif mean and std:
        name = next(
            (k for k, v in NORMALISATIONS.items() if np.allclose(v, (mean, std), atol=1e-3)), None
        )
        if name is None:
            raise UserError(
                f"{path} normalises with mean {mean} and deviation {std}; known here are "
                f"{', '.join(NORMALISATIONS)}."
            )
        found["normalisation"] = name
    return found | _resizing(path, stated)


def _resizing(path: Path, stated: _Preprocessor) -> dict[str, Any]:
    """Image size and way of resizing; warns of one that is not known here."""
    size = stated.get("size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    side, crop = _side(size), _side(stated.get("crop_size"))
    if not stated.get("do_center_crop") or crop is None:
        return {} if side is None else {"image_size": side}
    resized = side if edge is None else edge  # the network sees the middle of this
    found: dict[str, Any] = {"image_size": crop}
    if resized == resized_side(crop):
        found["resize"] = "crop"
    if edge is not None or ("resize" not in found and resized != crop):
        way = RESIZES[found.get("resize", "square")]
        warnings.warn(
            f"{path} resizes pictures to {size!r:.80} and takes the middle {crop} pixels. Here "
            f"they are prepared otherwise: {way}. Predictions of a picture may differ.",
            stacklevel=2,
        )
    return found


def _side(size: Any) -> int | None:
    """Pixels along a side of a square, which is a number or has height and width; or None."""
    if isinstance(size, dict):
        size = size.get("height") if size.get("height") == size.get("width") else None
    return size if type(size) is int and 1 <= size <= 4096 else None
