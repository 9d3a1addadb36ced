"""A data set of one's own: a folder of pictures with a subfolder for each class.

    DATA_DIR/flowers/train/daisy/1.jpg    beside train/ there may be val/ and test/
    DATA_DIR/flowers/daisy/1.jpg          or no such folders: the parts are drawn

It is the task 'folder_flowers' (and 'folder_flowers_4shot'). What is missing is drawn: the test
part where neither test/ nor val/ holds labelled pictures, then the part that settings are chosen
on. Classes are numbered in the order of their names, as by torchvision's ImageFolder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import PIL
from etils import epath

from fact_jax.data.class_folders import TRAIN, VAL, Parts, read_parts
from fact_jax.data.lists import Item, Lists
from fact_jax.data.source import CACHE_KEY, DataSettings, TaskData
from fact_jax.data.tasks import FOLDER, TEST, Task
from fact_jax.errors import UserError
from fact_jax.images import decoder, pipeline
from fact_jax.text import first_ten, printable_line

T = TypeVar("T", bound=Task)

TRAIN_VAL = "train+val"
REMEDY = (
    "Put a sound copy in its place, or remove the file; config.skip_damaged=True leaves such "
    "pictures out."
)
DRAWN_SHARE = 5  # of each class one image in five, at least one where there are two
_SEED = 2**31  # of all that is drawn


@dataclass(frozen=True)
class FolderTask(Task):
    """The pictures of a folder. Classes and sizes are not known before it is opened.

    Attributes:
      folder: its name in the data directory.
      counts: number of examples of 'train', 'val' and 'test'.
    """

    folder: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        counts = dict(self.counts)
        return {**counts, TRAIN_VAL: counts[TRAIN] + counts[VAL]} if counts else {}

    def train_split(self, seed: int, final: bool) -> str:
        return TRAIN_VAL if final else TRAIN

    def eval_split(self, final: bool) -> str:
        return TEST if final else VAL


def find(name: str) -> FolderTask | None:
    """The task of this name, None if it does not begin with 'folder_'."""
    match = re.fullmatch(r"folder_([A-Za-z0-9][A-Za-z0-9_.-]*)", name)
    if match is None:
        return None
    return FolderTask(
        name,
        "own",
        num_classes=0,
        builder=FOLDER,
        versions="-",
        splits={},
        test_size=0,
        folder=match[1],
    )


def read_folder(task: str, folder: str, data_dir: str | None, skip_damaged: bool = False) -> Lists:
    """The pictures of `data_dir`/`folder` as lists 'train', 'val' and 'test', each in an order of
    its own in which the classes are mixed.

    With `skip_damaged` they are those of a folder without its damaged pictures.

    Raises:
      UserError: no such folder, fewer than two classes, a class without pictures, too few of them.
    """
    where = f"Task {task}:"
    if not data_dir:
        raise UserError(
            f"{where} config.data_dir (--data_dir) is empty. It must be the folder in which "
            f"{folder!r} lies."
        )
    root = epath.Path(data_dir).expanduser() / folder
    if not root.is_dir():
        raise UserError(
            f"{where} {root} is no folder. Expected {root}/train/CLASS/*.jpg and "
            f"{root}/test/CLASS/*.jpg, or {root}/CLASS/*.jpg."
        )
    damaged: dict[str, str] = {}
    parts = read_parts(where, root, partial(_sound, root, damaged) if skip_damaged else None)
    names = sorted({p.class_name for p in parts.pictures[TRAIN]})
    _check_classes(where, root, names, parts)
    items = {
        part: [Item(p.path, names.index(p.class_name)) for p in pictures]
        for part, pictures in parts.pictures.items()
    }
    source = dict(parts.source)
    for part, text in ((TEST, "for test"), (VAL, "to choose settings on")):
        if part not in items:
            items[TRAIN], items[part] = _hold_out(items[TRAIN], len(names))
            source[part] = f"one image in {DRAWN_SHARE} of each class"
        if not items[part]:
            raise UserError(
                f"{where} {root} has too few pictures to keep some {text}: one of each class. Add "
                "pictures."
            )
    # A limit takes the first ones, which should not be of one class.
    items = {p: _mixed(items[p]) for p in (TRAIN, VAL, TEST)}
    note = "; ".join(f"{part}: {source[part]}" for part in (TRAIN, VAL, TEST))
    if drawn := [part for part in (TEST, VAL) if "one image" in source[part]]:
        note += f" (default_rng({_SEED}) drew {' and '.join(drawn)} from train)"
    if parts.note:
        note += f"; {parts.note}"
    prints = _fingerprints(where, root, items)
    shown = [printable_line(name) for name in names]
    return Lists("classes", root, root, items, shown, prints, note, damaged)


def _check_classes(where: str, root: epath.Path, names: list[str], parts: Parts) -> None:
    """UserError if the parts have other classes than train, or there is only one."""
    shown = [printable_line(name) for name in names]
    for part, pictures in parts.pictures.items():
        if unknown := sorted({p.class_name for p in pictures} - set(names)):
            raise UserError(
                f"{where} {root} has pictures of '{printable_line(unknown[0])}' in its {part} "
                f"part, but none in train. The classes of train are {', '.join(shown[:10])}"
                f"{' and so on' if len(names) > 10 else ''}."
            )
    if len(names) < 2:
        raise UserError(
            f"{where} {root} has one class, '{shown[0]}'; expected a folder for each of two or "
            "more. Is it one level too high, or too low?"
        )


def _sound(root: epath.Path, damaged: dict[str, str], paths: list[str]) -> set[str]:
    """The paths of pictures that can be decoded; the others go into `damaged`."""
    damaged |= find_damaged(root, paths)
    return set(paths) - set(damaged)


def find_damaged(
    root: epath.Path, paths: Sequence[str], num_threads: int | None = None
) -> dict[str, str]:
    """Decodes every picture: the paths of those that cannot be decoded, and why."""

    def reason(path: str) -> str:
        try:
            with decoder.opened(root / path):
                return ""
        except OSError as error:
            return str(error)

    reasons = pipeline.map_ahead(reason, paths, 64, num_threads)
    return {path: why for path, why in zip(paths, reasons, strict=True) if why}


def _hold_out(items: list[Item], num_classes: int) -> tuple[list[Item], list[Item]]:
    """(the others, one in `DRAWN_SHARE` of each class)."""
    labels, rng = np.array([item.label for item in items]), np.random.default_rng(_SEED)
    held: set[int] = set()
    for label in range(num_classes):
        own = rng.permutation(np.flatnonzero(labels == label))
        held.update(own[: max(len(own) // DRAWN_SHARE, 1) if len(own) > 1 else 0].tolist())
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )


def _mixed(items: list[Item]) -> list[Item]:
    return [items[i] for i in np.random.default_rng(_SEED).permutation(len(items))]


def _fingerprints(where: str, root: epath.Path, items: Mapping[str, list[Item]]) -> dict[str, str]:
    """Of each part: paths, classes and contents."""

    unread: list[str] = []

    def digest(item: Item) -> bytes:
        try:
            with decoder.reading(root / item.path) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            unread.append(f"{root / item.path} ({error.strerror or error})")
            return b""
        return os.fsencode(f"{item.path} {item.label} {content}\n")

    found = {}
    for part, own in items.items():
        whole = hashlib.sha256()
        for line in pipeline.map_ahead(digest, own, ahead=64):
            whole.update(line)
        found[part] = whole.hexdigest()[:16]
    if unread:
        raise UserError(f"{where} {first_ten(sorted(unread))} cannot be read. {REMEDY}")
    return found


class FolderData(TaskData):
    """A task that is read from the files of a folder: 'train', 'val', 'train+val' and 'test'."""

    def __init__(self, task: Task, settings: DataSettings, found: Lists):
        self.task, self._settings, self._lists, self._mocked = task, settings, found, False
        self._place, self._remedy = printable_line(str(found.images)), REMEDY
        self.provenance = {
            "task": task.name,
            "builder": FOLDER,
            "requested_version": None,
            "used_version": found.kind,
            "mapped": False,
            "note": found.note,
            "file_format": "files",
            "splits": found.sizes,
            "mock": False,
            "data_dir": printable_line(str(found.folder)),
            "fingerprint": found.fingerprint,
            "pillow": PIL.__version__,
            **self._pixels(),
            **_skipped(found.damaged),
        }

    def damaged(self) -> dict[str, str]:
        """Pictures that cannot be decoded, and why."""
        paths = dict.fromkeys(item.path for own in self._lists.items.values() for item in own)
        return find_damaged(self._lists.images, list(paths), self._settings.num_threads)

    @property
    def class_names(self) -> list[str] | None:
        return self._lists.class_names

    def _items(self, split: str) -> list[Item]:
        items = self._lists.items
        items = {**items, TRAIN_VAL: items[TRAIN] + items[VAL]}
        if split not in items:
            raise UserError(
                f"Task {self.task.name} has no split {split!r}; it has {', '.join(items)}."
            )
        return items[split]

    def _whole_size(self, split: str) -> int:
        return len(self._items(split))

    def _unread(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        """Examples with the image's path, which the thread that decodes it opens."""
        for path, label in self._items(split)[: self.size(split, limit)]:
            yield {"path": path, self.task.image_key: self._lists.images / path, "label": label}

    def _records(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        for index, example in enumerate(self._unread(split, limit)):
            with self._sound(index, example), decoder.reading(example[self.task.image_key]) as file:
                data = file.read()
            yield {**example, self.task.image_key: data}

    def _cache_key(self, split: str, size: int) -> dict[str, Any]:
        key = {name: self.provenance[name] for name in CACHE_KEY}
        prints = self._lists.fingerprints
        return {
            **key,
            "split": split,
            "fingerprint": [prints[part] for part in split.split("+")],
            "instruction": "",
            "size": size,
            "format": 2,  # 1 had 16-bit grey clipped at 255
        }


def _skipped(damaged: Mapping[str, str]) -> dict[str, Any]:
    """The entries of a record that say which pictures were skipped; none if none was."""
    if not damaged:
        return {}
    return {
        "skipped": len(damaged),
        "skipped_names": [printable_line(path) for path in list(damaged)[:10]],
    }


def open_folder(task: FolderTask, settings: DataSettings) -> FolderData:
    """Reads the names of the folder's pictures; UserError as `read_folder`'s."""
    refuse_mock(task, settings)
    found = read_folder(task.name, task.folder, settings.data_dir, settings.skip_damaged)
    return FolderData(with_sizes(task, found, counts=found.sizes), settings, found)


def with_sizes(task: T, found: Lists, **fields: Any) -> T:
    """The task with the classes and test images of its folder, and with these fields."""
    fields |= {"num_classes": len(found.class_names or ()), "test_size": found.sizes[TEST]}
    return dataclasses.replace(task, **fields)


def refuse_mock(task: Task, settings: DataSettings) -> None:
    """UserError: random pictures cannot take the place of a folder whose classes are not known."""
    if settings.mock:
        raise UserError(
            f"Task {task.name}: config.mock_data is True, but a folder has no mock data. Set it to "
            "False."
        )
