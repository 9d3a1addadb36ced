"""The metadata of factor files: their types, and the method and tensors that they describe.

Every function raises ValueError for metadata that no factor file has.
"""

import re
from typing import Annotated, Any, TypedDict

import jax

from fact_jax.algebra.quantise import Bits
from fact_jax.backbone.config import VARIANTS, ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.guards import MAX_CLASS_NAME, MAX_METADATA, MAX_PATCHES
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between, check_type
from fact_jax.images.normalise import check_normalisation
from fact_jax.images.pipeline import RESIZES
from fact_jax.tuning.method import Method, SharingMethod, factor_shapes
from fact_jax.tuning.registry import build_stored

FORMAT_VERSION = 1
# Of files of few bits a number, or without the factors that tasks share; earlier versions of this
# package refuse them.
PACKED_VERSION = 2
# Of a packed file and of a dictionary's name: 64 bits, enough to notice other bytes.
CHECKSUM_DIGITS = 16


class _OfMethod(TypedDict):
    format_version: int
    method: str
    method_settings: dict[str, Any]
    vit: dict[str, Any]


class _Dictionary(_OfMethod, total=False):
    variant: str | None
    weights_sha256: str | None


class _Needed(_OfMethod):
    num_classes: Annotated[int, Between(1, 2**31 - 1)]


class Metadata(_Needed, total=False):
    """The metadata that a user of the file relies on; there may be other entries."""

    variant: str | None
    weights_sha256: str | None
    normalisation: str | None
    task: str | None
    image_size: Annotated[int, Between(1, 4096)] | None
    jpeg_quality: Annotated[int, Between(1, 95)] | None
    multi_label: bool
    resize: str
    bits: tuple[int, int]
    dictionary: str
    class_names: list[Annotated[str, Between(0, MAX_CLASS_NAME)]] | None


def read_metadata(texts: dict[str, str]) -> dict[str, Any]:
    """The values of the JSON texts that a file has by their keys."""
    if sum(map(len, texts.values())) > MAX_METADATA:
        raise ValueError(f"metadata of more than {MAX_METADATA:,} characters")
    return {
        key: read_json(
            text.encode(),
            name=f"its metadata {ascii(key)[:50]}",
            schema=Any,
            allow_surrogates=True,
        )
        for key, text in texts.items()
    }


def expected_tensors(metadata: dict[str, Any]) -> tuple[Method, dict[str, tuple[int, ...]]]:
    """The method that the metadata describe, and the shapes of its tensors, nothing computed."""
    version = metadata.get("format_version", FORMAT_VERSION)
    small = "bits" in metadata or "dictionary" in metadata
    if version != (PACKED_VERSION if small else FORMAT_VERSION):
        raise ValueError(
            f"format version {version!r:.40}; this fact-jax reads {FORMAT_VERSION}, and "
            f"{PACKED_VERSION} of packed files and of files with a dictionary"
        )
    check_type(metadata, Metadata)
    method = build_stored(metadata["method"], metadata["method_settings"])
    config, classes = read_vit(metadata), metadata["num_classes"]
    check_preparation(metadata, config.patch_size)
    names = metadata.get("class_names")
    if names is not None and len(names) != classes:
        raise ValueError(f"class_names are not {classes} texts")
    shared: tuple[str, ...] = ()
    if (dictionary := metadata.get("dictionary")) is not None:
        shared = _shared(method)
        if not re.fullmatch(f"[0-9a-f]{{{CHECKSUM_DIGITS}}}", dictionary):
            raise ValueError(
                f"dictionary is {dictionary[:50]!r}; expected {CHECKSUM_DIGITS} digits"
            )
    factors = factor_shapes(method, config).items()
    shapes = {f"factors/{name}": shape for name, shape in factors if name not in shared}
    head = {"head/kernel": (config.width, classes), "head/bias": (classes,)}
    return method, {**shapes, **head}


def dictionary_tensors(
    metadata: dict[str, Any],
) -> tuple[SharingMethod, dict[str, tuple[int, ...]]]:
    """The method that a dictionary's metadata describe, and the shapes of its tensors."""
    check_type(metadata, _Dictionary)
    if metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"format version {metadata['format_version']!r:.40}; this fact-jax reads "
            f"{FORMAT_VERSION} of dictionaries"
        )
    method = build_stored(metadata["method"], metadata["method_settings"])
    shapes = factor_shapes(method, read_vit(metadata))
    shared = _shared(method)
    assert isinstance(method, SharingMethod)
    return method, {name: shapes[name] for name in shared}


def _shared(method: Method) -> tuple[str, ...]:
    """The factors of a method that tasks share."""
    if not isinstance(method, SharingMethod):
        raise ValueError(f"{type(method).__name__} has no factors that tasks share")
    return method.shared


def read_vit(metadata: dict[str, Any]) -> ViTConfig:
    """The ViT of the metadata."""
    try:
        if "bits" in metadata and metadata.get("variant") in VARIANTS:
            return VARIANTS[metadata["variant"]].replace(**metadata["vit"])
        return ViTConfig(**metadata["vit"])
    except UserError as error:
        raise ValueError(f"vit.{error}") from error


def compact(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a packed file.

    It has no nulls and no versions, the start of the weights' checksum, and of the ViT only what
    its variant does not say.
    """
    stated = {k: v for k, v in metadata.items() if v is not None and k != "versions"}
    if "weights_sha256" in stated:
        stated["weights_sha256"] = stated["weights_sha256"][:CHECKSUM_DIGITS]
    if metadata.get("variant") in VARIANTS:
        named = VARIANTS[metadata["variant"]]
        stated["vit"] = {k: v for k, v in metadata["vit"].items() if v != getattr(named, k)}
    else:
        stated["vit"] = ViTConfig(**metadata["vit"]).stated()
    return stated


def read_bits(metadata: dict[str, Any]) -> Bits | None:
    """Bits a number of a packed file, None for another."""
    if "bits" not in metadata:
        return None
    try:
        bits = Bits(*metadata["bits"])
        bits.check()
    except UserError as error:
        raise ValueError(f"bits: {error}") from error
    return bits


def check_preparation(metadata: dict[str, Any], patch_size: int) -> None:
    """Raises ValueError for images that cannot be prepared, or with too many patches to compute."""
    if (normalisation := metadata.get("normalisation")) is not None:
        check_normalisation(normalisation)
    if (resize := metadata.get("resize", "square")) not in RESIZES:
        raise ValueError(f"resize is {resize!r:.40}; expected one of {', '.join(RESIZES)}")
    image_size = metadata.get("image_size") or 0
    if (patches := (image_size // patch_size) ** 2) > MAX_PATCHES:
        raise ValueError(
            f"image_size is {image_size}, which is {patches:,} patches of {patch_size} pixels; "
            f"expected at most {MAX_PATCHES:,}, since attention takes memory by their square"
        )


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Leaves by their names joined by '/'."""
    return {
        "/".join(str(k.key) for k in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
