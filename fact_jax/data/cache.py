"""Decoded splits on disk: uint8 pixels as a memory map, labels, and the key they were made with."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import tokenize
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypedDict

import numpy as np
from jaxtyping import Int32, UInt8

from fact_jax.errors import UserError
from fact_jax.files.json_reader import read_json
from fact_jax.text import printable_line

_FILES = ("images.npy", "labels.npy", "record.json")
_MOST_RECORD = 1 << 20  # bytes; it has about 1,000
_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
# Errors that NumPy's reader of headers raises for damaged files.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, SyntaxError),
    *(RuntimeError, ArithmeticError, MemoryError, tokenize.TokenError),
)

Images: TypeAlias = UInt8[np.ndarray, "n y x 3"]
Labels: TypeAlias = Int32[np.ndarray, "n *c"]  # noqa: F821
_Shape: TypeAlias = tuple[int, int, int, int]


class Examples(NamedTuple):
    """Decoded examples: images uint8 [n, s, s, 3], labels int32 [n].

    A multi-label task has labels [n, c], 1 for those that an example has.
    """

    images: Images
    labels: Labels


class _Record(TypedDict):
    labels_sha256: str


def cached(
    root: str | Path,
    key: Mapping[str, object],
    size: int,
    side: int,
    build: Callable[[], Iterable[Examples]],
    labels: tuple[int, ...] = (),
) -> Examples:
    """The split of this key, read from the cache or built into it.

    Args:
      root: the cache directory, on a local or mounted file system.
      key: JSON-able description of everything that the pixels depend on; has 'task' and 'split'.
      size: number of examples.
      side: side of the images in pixels.
      build: makes the batches, called only if the cache has no sound copy.
      labels: shape of the labels of one example.

    Returns:
      The examples; images [size, side, side, 3] are a read-only memory map.

    Raises:
      UserError: the directory cannot be written.
    """
    text = json.dumps(key, sort_keys=True, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(root).expanduser() / f"{key['task']}-{key['split']}-{digest}"
    shape, labels = (size, side, side, 3), (size, *labels)
    if os.path.lexists(folder):
        try:
            return _read(folder, shape, labels)
        except _DAMAGE as error:
            reason = printable_line(" ".join(str(error).split())[:200])
            put_away = _put_away(folder)
            warnings.warn(
                f"Cached split {folder} is corrupt ({reason}): building it again. {put_away}",
                stacklevel=2,
            )
    try:
        return _written(folder, text, shape, labels, build())
    except OSError as error:
        raise UserError(
            f"Cannot write the decoded split to {folder} ({error}). It takes "
            f"{np.prod(shape) / 1e9:.2g} GB: free the space, or give another data_cache or none."
        ) from error


def _put_away(folder: Path) -> str:
    """Removes a damaged entry; renames anything else in its place, and returns a sentence on it."""
    aside = folder.with_name(f"set-aside-{uuid.uuid4().hex[:8]}-{folder.name}")
    try:
        folder.rename(aside)  # first, so that other processes see all of an entry or nothing
    except FileNotFoundError:  # another process was faster
        return ""
    except OSError as error:
        raise UserError(
            f"{folder} is no sound part of the data cache and cannot be moved away ({error}). "
            "Remove it, or give another data_cache or none."
        ) from error
    with contextlib.suppress(OSError):
        if aside.is_dir() and not aside.is_symlink() and set(os.listdir(aside)) <= set(_FILES):
            for name in os.listdir(aside):
                (aside / name).unlink()  # fails for folders, which are not ours
            aside.rmdir()
            return ""
    return f"What was there is now {aside}."


def _written(
    folder: Path,
    text: str,
    shape: _Shape,
    labels_shape: tuple[int, ...],
    batches: Iterable[Examples],
) -> Examples:
    """The examples, read from a new entry."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"building-{folder.name}-", dir=folder.parent))
    try:
        images = np.lib.format.open_memmap(building / "images.npy", "w+", np.uint8, shape)
        labels = np.empty(labels_shape, np.int32)
        count = 0
        for batch_images, batch_labels in batches:
            stop = count + len(batch_labels)
            images[count:stop], labels[count:stop] = batch_images, batch_labels
            count = stop
        if count != shape[0]:
            raise ValueError(f"{folder.name}: read {count} examples, expected {shape[0]}")
        images.flush()
        np.save(building / "labels.npy", labels)
        record = {"key": text, "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest()}
        (building / "record.json").write_text(json.dumps(record))
        # Read before it has its name, under which a process that had found damage may put it away.
        examples = _read(building, shape, labels_shape)
        try:
            building.rename(folder)  # atomic: a reader sees the whole split or none of it
        except OSError as error:
            if error.errno not in _EXISTS:  # where it does, another process was faster
                raise
        return examples
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _read(folder: Path, shape: _Shape, labels_shape: tuple[int, ...]) -> Examples:
    for name in _FILES:
        if not stat.S_ISREG((folder / name).stat().st_mode):
            raise ValueError(f"{name} is no file")
    record: _Record = read_json(folder / "record.json", schema=_Record, max_bytes=_MOST_RECORD)
    images = _array(folder / "images.npy", shape, np.uint8)  # fails where the file is short
    labels = np.array(_array(folder / "labels.npy", labels_shape, np.int32))
    if hashlib.sha256(labels.tobytes()).hexdigest() != record["labels_sha256"]:
        raise ValueError("labels differ from their checksum")
    return Examples(images, labels)


def _array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """The array of a `.npy` file as a memory map; ValueError if it is another one."""
    with path.open("rb") as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"{path.name} is of version {version}, expected (1, 0)")
        stored, fortran, stored_dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if (stored, fortran, stored_dtype) != (shape, False, np.dtype(dtype)):
        raise ValueError(
            f"{path.name} is {stored_dtype} {stored}, expected {np.dtype(dtype)} {shape}"
        )
    return np.memmap(path, dtype, "r", start, shape)
