"""Dictionaries: the factors that many tasks share, in a file of their own.

A task's factor file then has its cores and its head alone, and names its dictionary by the start of
the checksum. The dictionary lies beside it, as `<checksum>.dictionary`, a safetensors file of the
method's shared factors in float32.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.guards import DAMAGE, read_start
from fact_jax.files.metadata import (
    CHECKSUM_DIGITS,
    FORMAT_VERSION,
    dictionary_tensors,
    read_metadata,
    read_vit,
)
from fact_jax.files.tensors import SafetensorsFile, Tensors
from fact_jax.files.writing import file_bytes
from fact_jax.tuning.method import SharingMethod
from fact_jax.tuning.registry import describe

SUFFIX = ".dictionary"


class Dictionary(NamedTuple):
    """The content of a dictionary.

    Attributes:
      method: the method of its tasks, whose scale is each task's own.
      factors: the shared factors, float32.
      metadata: the file's; "vit", "variant" and "weights_sha256" say which ViT it was learnt on.
      content: the bytes of its file.
      path: where it was read; None if it was made here.
    """

    method: SharingMethod
    factors: dict[str, np.ndarray]
    metadata: dict[str, Any]
    content: bytes
    path: Path | None = None

    @classmethod
    def of(
        cls,
        method: SharingMethod,
        factors: Mapping[str, Any],
        config: ViTConfig,
        metadata: Mapping[str, Any],
    ) -> "Dictionary":
        """The dictionary of a method's shared factors; others are left out.

        `metadata` are variant and weights_sha256.
        """
        method = dataclasses.replace(method, scale=1.0)
        name, settings = describe(method)
        metadata = {
            "format_version": FORMAT_VERSION,
            "method": name,
            "method_settings": settings,
            "vit": config.stated(),
            **metadata,
        }
        arrays = {k: np.ascontiguousarray(factors[k], np.float32) for k in method.shared}
        return cls(method, arrays, metadata, file_bytes(arrays, metadata))

    @property
    def checksum(self) -> str:
        """The start of the file's SHA-256, by which factor files name it."""
        return checksum_of(self.content)

    @property
    def file_name(self) -> str:
        """The name of its file beside factor files."""
        return self.checksum + SUFFIX

    def check(self, where: str, method: Any, config: ViTConfig, weights_sha256: str | None) -> None:
        """Raises UserError unless it belongs to a method, a ViT and its weights.

        `where` begins the sentence: what asks for the dictionary.
        """
        wanted = dataclasses.replace(method, scale=1.0)
        if wanted != self.method:
            raise UserError(
                f"{where} shares the dictionary {self.path or self.file_name}, which is of "
                f"{self.method}, and the task's method is {wanted}. Give both the same settings."
            )
        learnt_on = read_vit(self.metadata)
        for name in _SHAPE:
            if (here := getattr(config, name)) != getattr(learnt_on, name):
                raise UserError(
                    f"{where} shares the dictionary {self.path or self.file_name}, which is of a "
                    f"ViT with {name} {getattr(learnt_on, name)}, and this one has {here}. Give "
                    "a dictionary of this ViT."
                )
        learnt = self.metadata.get("weights_sha256")
        if weights_sha256 and learnt and not learnt.startswith(weights_sha256[:CHECKSUM_DIGITS]):
            raise UserError(
                f"{where} shares the dictionary {self.path or self.file_name}, which was learnt on "
                f"other weights: their checksum is {learnt[:16]}..., the ViT's "
                f"{weights_sha256[:16]}.... Give a dictionary of these weights."
            )


# Fields of `ViTConfig` that decide the shapes of factors.
_SHAPE = ("width", "depth", "mlp_dim", "num_heads")


def checksum_of(content: bytes) -> str:
    """The checksum of a dictionary's file."""
    return hashlib.sha256(content).hexdigest()[:CHECKSUM_DIGITS]


def read_dictionary(path: str | os.PathLike[str]) -> Dictionary:
    """Reads a dictionary.

    Names, shapes and types are checked before the numbers are read, as for factor files.

    Raises:
      UserError: the file is missing, damaged or something else.
    """
    path = Path(path)
    read_start("Dictionary", path)
    try:
        with contextlib.closing(SafetensorsFile(path)) as file:
            dictionary = dictionary_of(file, read_metadata(file.metadata))
        return dictionary._replace(content=path.read_bytes(), path=path)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"{path} is not a dictionary of fact-jax, or a damaged one ({reason}). Give one that "
            f"`fact-jax bank train` or `fact-jax bank share` has written, *{SUFFIX}."
        ) from error


def dictionary_of(tensors: Tensors, metadata: dict[str, Any]) -> Dictionary:
    """The dictionary of these tensors and metadata. Raises an error of DAMAGE if it is none."""
    method, shapes = dictionary_tensors(metadata)
    stored = {name: (tensors.shapes[name], tensors.dtypes[name]) for name in tensors.shapes}
    if stored != {name: (shape, "F32") for name, shape in shapes.items()}:
        raise ValueError(f"its tensors are {stored}, expected {shapes}")
    factors = {name: tensors.read(name) for name in shapes}
    if bad := [name for name, array in factors.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{bad[0]!r} has non-finite numbers")
    return Dictionary(method, factors, metadata, file_bytes(factors, metadata))


def find_dictionary(factor_file: Path, checksum: str) -> Dictionary:
    """The dictionary beside a factor file.

    Raises:
      UserError: it is not there, or is another one than its name says.
    """
    path = factor_file.parent / (checksum + SUFFIX)
    if not path.is_file():
        raise UserError(
            f"Factor file {factor_file} shares the dictionary {path.name}, which is not beside it. "
            f"Copy that file into {factor_file.parent}/, too."
        )
    # A server reads one folder alone. In a copy of a hub's repository both are links into one.
    folders = {factor_file.parent.resolve(), factor_file.resolve().parent}
    if path.resolve().parent not in folders:
        raise UserError(f"{path} is a link that leads out of its folder. Copy the file there.")
    dictionary = read_dictionary(path)
    if dictionary.checksum != checksum:
        raise UserError(
            f"{path} is another dictionary than its name says, or a damaged one: its checksum is "
            f"{dictionary.checksum}. Fetch or make it again."
        )
    return dictionary
