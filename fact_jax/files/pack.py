"""Packs: the factor files of many tasks, and their dictionaries, in one file.

A pack is a safetensors file. Its tensors are those of the factor files, as `tasks/<name>/<tensor>`,
and those of the dictionaries, as `dictionaries/<checksum>/<factor>`, all as they are stored there.
Its metadata are JSON texts: `common` has the entries that all tasks share, `tasks` the other
entries of each, `dictionaries` those of the dictionaries. A task's bytes do not depend on which
other tasks are in the pack, and unpacking gives back the files that were packed.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.dictionary import Dictionary, dictionary_of
from fact_jax.files.factors import TrainedTask, read_factors, read_task, with_dictionary
from fact_jax.files.guards import DAMAGE, MAX_METADATA, MAX_TENSORS, read_start
from fact_jax.files.metadata import read_metadata
from fact_jax.files.schema import check_type
from fact_jax.files.tensors import SafetensorsFile
from fact_jax.files.writing import COMPACT, file_bytes

SUFFIX = ".pack"
_VERSION = 1


class _Metadata(TypedDict):
    pack_version: int
    common: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    dictionaries: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """The tensors of a pack whose names begin with a prefix, without it."""

    file: SafetensorsFile
    prefix: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._of(self.file.shapes)

    @property
    def dtypes(self) -> dict[str, str]:
        return self._of(self.file.dtypes)

    def read(self, name: str) -> np.ndarray:
        return self.file.read(self.prefix + name)

    def all(self) -> dict[str, np.ndarray]:
        """All tensors."""
        return {name: self.read(name) for name in self.shapes}

    def _of(self, values: dict[str, Any]) -> dict[str, Any]:
        start = len(self.prefix)
        return {k[start:]: v for k, v in values.items() if k.startswith(self.prefix)}


def _same(one: Any, other: Any) -> bool:
    """Whether two entries of metadata are the same text: 1, 1.0 and True are not."""
    return json.dumps(one) == json.dumps(other)


def pack_files(paths: Sequence[Path]) -> bytes:
    """The pack of factor files, whose tasks have the files' names without their suffix.

    Raises:
      UserError: a file is no factor file of this package, or two have one name.
    """
    tensors: dict[str, np.ndarray] = {}
    tasks: dict[str, dict[str, Any]] = {}
    dictionaries: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.stem.isprintable():
            raise UserError(
                f"Factor file {path} has a name that a pack cannot hold: expected text in UTF-8 "
                "without control characters. Rename it."
            )
        if path.stem in tasks:
            raise UserError(f"Two factor files have the name {path.stem!r}; rename one.")
        task = read_factors(path)  # says what is wrong with it
        with contextlib.closing(SafetensorsFile(path)) as file:
            tasks[path.stem] = read_metadata(file.metadata)
            stored = _Part(file, "").all()
        tensors |= {f"tasks/{path.stem}/{name}": array for name, array in stored.items()}
        if (dictionary := task.dictionary) is not None:
            dictionaries[dictionary.checksum] = dictionary.metadata
            of_it = dictionary.factors.items()
            tensors |= {f"dictionaries/{dictionary.checksum}/{k}": v for k, v in of_it}
    first = next(iter(tasks.values()), {})
    common = {
        key: value
        for key, value in first.items()
        if all(key in task and _same(task[key], value) for task in tasks.values())
    }
    rest = {
        name: {k: v for k, v in metadata.items() if k not in common}
        for name, metadata in tasks.items()
    }
    metadata = {"pack_version": _VERSION, "common": common, "tasks": rest}
    metadata["dictionaries"] = dictionaries
    sizes = {
        "tensors": (len(tensors), MAX_TENSORS),
        "characters of metadata": (len(json.dumps(metadata)), MAX_METADATA),
    }
    for what, (number, most) in sizes.items():
        if number > most:
            raise UserError(
                f"{len(tasks):,} tasks have {number:,} {what}, and a pack has at most {most:,}. "
                "Divide the folder, and make several packs."
            )
    return file_bytes(tensors, metadata, COMPACT)


class Pack:
    """An opened pack, `with Pack(path) as pack`; a task is read when it is asked for.

    Raises:
      UserError: the file is missing, damaged or something else.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        read_start("Pack", self.path)
        try:
            self._file = SafetensorsFile(self.path)
            metadata = read_metadata(self._file.metadata)
            check_type(metadata, _Metadata)
            if metadata["pack_version"] != _VERSION:
                raise ValueError(f"pack version {metadata['pack_version']!r:.40}")
        except DAMAGE as error:
            raise self._damaged(error) from error
        self._metadata = metadata
        self._dictionaries: dict[str, Dictionary] = {}

    def __enter__(self) -> "Pack":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """Names of the tasks, sorted."""
        return sorted(self._metadata["tasks"])

    @property
    def dictionaries(self) -> list[Dictionary]:
        """All dictionaries of the tasks."""
        return [self._dictionary(checksum) for checksum in sorted(self._metadata["dictionaries"])]

    def task(self, name: str) -> TrainedTask:
        """A task, as `load_factors` gives it. Raises UserError for a name that is not there."""
        path, part, metadata = self._parts(name)
        try:
            task = read_task(path, part, metadata)
        except DAMAGE as error:
            raise self._damaged(error) from error
        checksum = metadata.get("dictionary")
        return task if checksum is None else with_dictionary(task, self._dictionary(checksum))

    def file(self, name: str) -> bytes:
        """The factor file that a task was packed from."""
        self.task(name)  # says what is wrong with it
        _, part, metadata = self._parts(name)
        return file_bytes(part.all(), metadata, COMPACT if "bits" in metadata else None)

    def _parts(self, name: str) -> tuple[Path, _Part, dict[str, Any]]:
        if name not in self._metadata["tasks"]:
            some = ", ".join(self.names[:5])
            raise UserError(
                f"{self.path} has no task {name[:100]!r} among its {len(self.names)} ({some} ...)."
            )
        metadata = {**self._metadata["common"], **self._metadata["tasks"][name]}
        return self.path / name, _Part(self._file, f"tasks/{name}/"), metadata

    def _dictionary(self, checksum: str) -> Dictionary:
        if checksum not in self._dictionaries:
            try:
                part = _Part(self._file, f"dictionaries/{checksum}/")
                metadata = self._metadata["dictionaries"].get(checksum, {})
                dictionary = dictionary_of(part, dict(metadata))
                if dictionary.checksum != checksum:
                    raise ValueError(f"the dictionary {checksum[:50]!r} is another one")
            except DAMAGE as error:
                raise self._damaged(error) from error
            self._dictionaries[checksum] = dictionary._replace(path=self.path)
        return self._dictionaries[checksum]

    def _damaged(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        return UserError(
            f"{self.path} is not a pack of fact-jax, or a damaged one ({reason}). Give one that "
            f"`fact-jax bank pack` has written, *{SUFFIX}."
        )


def load_pack(path: str | os.PathLike[str]) -> dict[str, TrainedTask]:
    """Reads the tasks of a pack by their names, as `load_factors` gives them.

    Args:
      path: a file that `fact-jax bank pack` wrote.

    Raises:
      UserError: the file is missing, damaged or something else.
    """
    with Pack(path) as pack:
        return {name: pack.task(name) for name in pack.names}
