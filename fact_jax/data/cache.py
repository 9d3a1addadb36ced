"""Decoded splits on disk: uint8 pixels as a memory map, labels, and the key they were made with."""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fact_jax.errors import UserError

Batches = Iterable[tuple[np.ndarray, np.ndarray]]  # images uint8 [b, s, s, 3], labels int32 [b]


def cached(
    root: str | Path, key: Mapping[str, Any], size: int, side: int, build: Callable[[], Batches]
) -> tuple[np.ndarray, np.ndarray]:
    """The split of this key, read from the cache or built into it.

    Args:
      root: the cache directory, on a local or mounted file system.
      key: JSON-able description of everything that the pixels depend on; has 'task' and 'split'.
      size: number of examples.
      side: side of the images in pixels.
      build: makes the batches, called only if the cache has no sound copy.

    Returns:
      images uint8 [size, side, side, 3] as a read-only memory map, and labels int32 [size].

    Raises:
      UserError: the directory cannot be written.
    """
    text = json.dumps(key, sort_keys=True, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(root).expanduser() / f"{key['task']}-{key['split']}-{digest}"
    shape = (size, side, side, 3)
    if folder.exists():
        try:
            return _read(folder, shape)
        except (OSError, EOFError, ValueError, KeyError) as error:
            warnings.warn(
                f"Cached split {folder} is corrupt ({error}): building it again.", stacklevel=2
            )
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _write(folder, text, shape, build())
    except OSError as error:
        raise UserError(
            f"Cannot write the decoded split to {folder} ({error}). It takes "
            f"{np.prod(shape) / 1e9:.2g} GB: free the space, or give another data_cache or none."
        ) from error
    return _read(folder, shape)


def _write(folder: Path, text: str, shape: tuple[int, ...], batches: Batches) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"building-{folder.name}-", dir=folder.parent))
    try:
        images = np.lib.format.open_memmap(building / "images.npy", "w+", np.uint8, shape)
        labels = np.empty(shape[0], np.int32)
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
        try:
            building.rename(folder)  # atomic: a reader sees the whole split or none of it
        except OSError:
            if not folder.exists():  # where it does, another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _read(folder: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    record = json.loads((folder / "record.json").read_text())
    images = np.load(folder / "images.npy", mmap_mode="r")  # fails where the file is short
    labels = np.load(folder / "labels.npy")
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 {shape}")
    if hashlib.sha256(labels.tobytes()).hexdigest() != record["labels_sha256"]:
        raise ValueError("labels differ from their checksum")
    return images, labels
