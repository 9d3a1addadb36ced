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
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import PIL
from etils import epath

from fact_jax.data import decoder, images
from fact_jax.data.lists import Item, Lists
from fact_jax.data.source import CACHE_KEY, DataSettings, TaskData
from fact_jax.data.tasks import FOLDER, TEST, Task
from fact_jax.errors import UserError

T = TypeVar("T", bound=Task)

TRAIN, VAL, TRAIN_VAL = "train", "val", "train+val"
DRAWN_SHARE = 5  # of each class one image in five, at least one where there are two
_SEED = 2**31  # of all that is drawn
_VAL_FOLDERS = ("val", "valid", "validation")


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
        name, "own", num_classes=0, builder=FOLDER, versions="-", splits={}, test_size=0,
        folder=match[1],
    )  # fmt: skip


def read_folder(task: str, folder: str, data_dir: str | None) -> Lists:
    """The pictures of `data_dir`/`folder` as lists 'train', 'val' and 'test', each in an order of
    its own in which the classes are mixed.

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
    found, source = _parts(where, root)
    names = sorted({name for _, name in found[TRAIN]})
    for part, pictures in found.items():
        if unknown := sorted({name for _, name in pictures} - set(names)):
            raise UserError(
                f"{where} {root} has pictures of {unknown[0]!r} in its {part} part, but none in "
                f"train. The classes of train are {', '.join(names[:10])}"
                f"{' and so on' if len(names) > 10 else ''}."
            )
    if len(names) < 2:
        raise UserError(
            f"{where} {root} has one class, {names[0]!r}; expected a folder for each of two or "
            "more. Is it one level too high, or too low?"
        )
    items = {
        part: [Item(path, names.index(name)) for path, name in pictures]
        for part, pictures in found.items()
    }
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
    return Lists("classes", root, root, items, names, _fingerprints(where, root, items), note)


def _parts(where: str, root: epath.Path) -> tuple[dict[str, list[tuple[str, str]]], dict[str, str]]:
    """(path, class) of the parts that have folders of their own, and where each part comes from."""
    train = root / "train"
    if not (train.is_dir() and _subfolders(train)):
        return {TRAIN: _pictures(where, root, root)}, {TRAIN: "."}
    source = {TRAIN: "train/"}
    labelled = [n for n in (*_VAL_FOLDERS, "test") if (root / n).is_dir() and _subfolders(root / n)]
    vals = [name for name in labelled if name in _VAL_FOLDERS]
    if len(vals) > 1:
        raise UserError(f"{where} {root} has both {vals[0]}/ and {vals[1]}/. Keep one of them.")
    if "test" in labelled:
        source[TEST] = "test/"
        source |= {VAL: f"{vals[0]}/"} if vals else {}
    elif vals:  # what nothing was trained on is for the final measure
        source[TEST] = f"{vals[0]}/, there being no labelled test/"
    folders = {part: root / text.partition("/")[0] for part, text in source.items()}
    return {part: _pictures(where, root, folder) for part, folder in folders.items()}, source


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())


def _pictures(where: str, root: epath.Path, folder: epath.Path) -> list[tuple[str, str]]:
    """(path from `root`, class) of the pictures in the subfolders."""
    suffixes = decoder.suffixes()
    found = []
    for own in _subfolders(folder):
        paths = [p for p in _files(own) if p.suffix.lower() in suffixes]
        if not paths:
            raise UserError(
                f"{where} the class folder {own} has no pictures: no file whose name ends in "
                f"{', '.join(sorted(suffixes))}."
            )
        found += [(p.relative_to(root).as_posix(), own.name) for p in paths]
    if not found:
        raise UserError(
            f"{where} {folder} has no subfolders. Expected one for each class, with its pictures."
        )
    return found


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All below the folder in the order of their names, but hidden ones."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


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

    def digest(item: Item) -> bytes:
        try:
            content = (root / item.path).read_bytes()
        except OSError as error:
            raise UserError(f"{where} {root / item.path} cannot be read ({error}).") from error
        return f"{item.path} {item.label} {hashlib.sha256(content).hexdigest()}\n".encode()

    found = {}
    for part, own in items.items():
        whole = hashlib.sha256()
        for line in images.map_ahead(digest, own, ahead=64):
            whole.update(line)
        found[part] = whole.hexdigest()[:16]
    return found


class FolderData(TaskData):
    """A task that is read from the files of a folder: 'train', 'val', 'train+val' and 'test'."""

    def __init__(self, task: Task, settings: DataSettings, found: Lists):
        self.task, self._settings, self._lists, self._mocked = task, settings, found, False
        self._place, self._remedy = str(found.images), "Put a sound copy in its place."
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
            "data_dir": str(found.folder),
            "fingerprint": found.fingerprint,
            "pillow": PIL.__version__,
            **self._pixels(),
        }

    def damaged(self) -> dict[str, str]:
        """Pictures that cannot be decoded, and why."""

        def reason(item: Item) -> str:
            try:
                with decoder.opened(self._lists.images / item.path):
                    return ""
            except OSError as error:
                return str(error)

        every = [item for own in self._lists.items.values() for item in own]
        reasons = images.map_ahead(reason, every, 64, self._settings.num_threads)
        return {item.path: why for item, why in zip(every, reasons, strict=True) if why}

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

    def _records(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        for path, label in self._items(split)[: self.size(split, limit)]:
            try:
                data = (self._lists.images / path).read_bytes()
            except OSError as error:
                raise UserError(
                    f"Task {self.task.name}: image {path} in {self._place} cannot be read "
                    f"({error}). {self._remedy}"
                ) from error
            yield {"path": path, self.task.image_key: data, "label": label}

    def _cache_key(self, split: str, size: int) -> dict[str, Any]:
        key = {name: self.provenance[name] for name in CACHE_KEY}
        prints = self._lists.fingerprints
        own = [prints[part] for part in split.split("+")]
        return {
            **key, "split": split, "fingerprint": own, "instruction": "", "size": size, "format": 1,
        }  # fmt: skip


def open_folder(task: FolderTask, settings: DataSettings) -> FolderData:
    """Reads the names of the folder's pictures; UserError as `read_folder`'s."""
    refuse_mock(task, settings)
    found = read_folder(task.name, task.folder, settings.data_dir)
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
