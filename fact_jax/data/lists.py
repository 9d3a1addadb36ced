"""Folders of images with the split lists that people have: NOAH's, CoOp's, Aircraft's own.

A folder is looked for in the data directory under the names of the task's `folders`:

    food-101/annotations/train_meta.list.num_shot_4.seed_0    NOAH: lines "PATH LABEL"
    food-101/annotations/{val,test}_meta.list
    food-101/split_zhou_Food101.json                          CoOp: {"train": [[path, label, name]]}
    fgvc_aircraft/images_variant_{train,val,test}.txt         official: lines "NUMBER VARIANT"
    food-101/images/apple_pie/1005649.jpg                     or jpg/..., or beside the lists

NOAH's few-shot lists are read as they are (at 1 shot those of Pets hold every image twice).
From the others, K images a class are drawn (`draw`).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from etils import epath

from fact_jax.data.fewshot import FewShotTask
from fact_jax.errors import UserError
from fact_jax.files.json_reader import read_json
from fact_jax.images import decoder
from fact_jax.text import first_ten, printable_line

_IMAGE_FOLDERS = ("images", "jpg", "")


_MOST_BYTES = 64 << 20  # of one list; Food-101's largest has 3 MB


class Item(NamedTuple):
    """One line of a list: where the image is, and its class."""

    path: str
    label: int


@dataclass(frozen=True)
class Lists:
    """The lists of one folder.

    Attributes:
      kind: 'noah', 'coop' or 'official'; 'classes' of a folder without lists (`folders.py`).
      folder: where the lists are.
      images: what their paths begin at.
      items: the lists: 'val', 'test', and either 'train' or 'train-seed0' and so on.
      class_names: None where the lists have none.
      fingerprints: of each list: its lines, and the sizes of the image files.
      note: how the lists were made, where they were not read.
      damaged: pictures that were left out, and why.
    """

    kind: str
    folder: epath.Path
    images: epath.Path
    items: dict[str, list[Item]]
    class_names: list[str] | None
    fingerprints: dict[str, str]
    note: str = ""
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each list."""
        return {split: len(items) for split, items in self.items.items()}

    @property
    def fingerprint(self) -> str:
        """Of all the lists."""
        every = json.dumps(self.fingerprints, sort_keys=True)
        return hashlib.sha256(every.encode()).hexdigest()[:16]


def draw(
    labels: Sequence[int] | np.ndarray,
    num_classes: int,
    shots: int,
    seed: int,
    what: str,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Rows of K images of each class, in rising order: the first K of each class's rows, permuted.

    So the rows of fewer shots are among those of more. numpy's `default_rng(seed)` permutes class
    by class. UserError, with `what` in it, if a class has fewer than K rows.
    """
    labels, rng, rows = np.asarray(labels), np.random.default_rng(seed), []
    for label in range(num_classes):
        own = np.flatnonzero(labels == label)
        if len(own) < shots:
            raise UserError(
                f"{what} has {len(own)} images of class {names[label] if names else label}, fewer "
                f"than the {shots} asked for."
            )
        rows.append(rng.permutation(own)[:shots])
    return np.sort(np.concatenate(rows))


def find_lists(task: FewShotTask, root: str) -> Lists | None:
    """The first of the task's folders in `root` that has lists; None if none has.

    Raises:
      UserError: lists that cannot be read, that have not the published sizes or share images
        between train and test; images that are not there; NOAH's lists, but not for these shots.
    """
    without = None
    for folder in (epath.Path(root).expanduser() / name for name in task.folders):
        for kind, read in (("noah", _noah), ("coop", _coop), ("official", _official)):
            if found := read(task, folder):
                return _checked(task, kind, folder, *found)
        if (folder / "annotations" / "test_meta.list").exists():
            without = folder / "annotations"
    if without is not None:
        raise UserError(
            f"Task {task.name}: {without} has NOAH's lists, but none named "
            f"train_meta.list.num_shot_{task.shots}.seed_S, and there are no others to draw "
            f"{task.shots} images a class from. NOAH has 1, 2, 4, 8 and 16 shots."
        )
    return None


_Found = tuple[dict[str, list[Item]], list[str] | None]


def _noah(task: FewShotTask, folder: epath.Path) -> _Found | None:
    annotations = folder / "annotations"
    if not (annotations / "test_meta.list").exists():
        return None
    items = {}
    for path in sorted(annotations.glob(f"train_meta.list.num_shot_{task.shots}.seed_*")):
        if match := re.search(r"\.seed_(\d+)$", path.name):
            items[f"train-seed{int(match[1])}"] = _lines(path)
    if not items:
        return None
    items |= {split: _lines(annotations / f"{split}_meta.list") for split in ("val", "test")}
    return items, None


def _lines(path: epath.Path) -> list[Item]:
    items = []
    for number, line in _numbered(path):
        name, _, label = line.rpartition(" ")
        try:
            items.append(_item(name, label))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: expected an image's path, a space and its class, "
                f"found {_quoted(line)} ({error})."
            ) from error
    return items


def _item(path: object, label: object) -> Item:
    """One entry of a list; ValueError with the reason where it makes no sense."""
    if not isinstance(path, str) or not path:
        raise ValueError("there is no path")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError("its path leads out of the folder of the images")
    if "\0" in path:
        raise ValueError("its path has a NUL character")
    if isinstance(label, bool) or not re.fullmatch("[0-9]{1,9}", str(label)[:10]):
        raise ValueError("its class is no number from 0 to 999999999")
    return Item(path, int(str(label)))


def _quoted(value: object) -> str:
    """The beginning of a text or another value, as a message shows it."""
    return ascii(value[:100] if isinstance(value, str) else value)[:120]


def _numbered(path: epath.Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, and their numbers from 1."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _text(path: epath.Path) -> str:
    try:
        with decoder.reading(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"The list {path} cannot be read ({error}).") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"The list {path} has more than {_MOST_BYTES:,} bytes.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"The list {path} cannot be read: line {line} is not UTF-8. Save it as UTF-8."
        ) from error


def _coop(task: FewShotTask, folder: epath.Path) -> _Found | None:
    if task.json is None or not (folder / task.json).exists():
        return None
    path = folder / task.json
    names: dict[int, str] = {}
    items: dict[str, list[Item]] = {}
    expected = (
        f"{path}: expected train, val and test, each a list of [path, class, name of the class]"
    )
    try:
        content = read_json(path)
    except (OSError, UserError) as error:
        raise UserError(f"{expected}. {error}") from error
    for split in ("train", "val", "test"):
        if not isinstance(content.get(split), list):
            raise UserError(f"{expected}, found no list {split!r}.")
        items[split] = []
        for number, entry in enumerate(content[split], 1):
            try:
                if not isinstance(entry, list) or len(entry) != 3:
                    raise ValueError("it has not three values")
                items[split].append(_item(*entry[:2]))
            except ValueError as error:
                raise UserError(
                    f"{expected}; entry {number} of {split} is {_quoted(entry)} ({error})."
                ) from error
            names[items[split][-1].label] = printable_line(str(entry[2]))
    return items, [names.get(label, str(label)) for label in range(task.num_classes)]


def _official(task: FewShotTask, folder: epath.Path) -> _Found | None:
    if task.dataset != "fgvc_aircraft" or not (folder / "images_variant_train.txt").exists():
        return None
    names = [line for _, line in _numbered(folder / "variants.txt")]
    items: dict[str, list[Item]] = {}
    for split in ("train", "val", "test"):
        path = folder / f"images_variant_{split}.txt"
        items[split] = []
        for number, line in _numbered(path):
            image, _, name = line.partition(" ")
            if name not in names:
                raise UserError(f"{path}, line {number}: {_quoted(name)} is not in variants.txt.")
            try:
                items[split].append(_item(f"{image}.jpg", names.index(name)))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: found {_quoted(line)} ({error})."
                ) from error
    return items, [printable_line(name) for name in names]


def _checked(
    task: FewShotTask,
    kind: str,
    folder: epath.Path,
    items: dict[str, list[Item]],
    class_names: list[str] | None,
) -> Lists:
    """The lists, if what they say is possible and the images are there."""
    where = f"Task {task.name}: the lists in {folder}"
    for split, lines in items.items():
        expected = task.list_sizes.get(split)
        if not lines or (expected is not None and len(lines) != expected):
            raise UserError(
                f"{where} have {len(lines)} images for {split}, expected {expected or 'some'}. "
                f"Take the published lists again."
            )
        if wrong := [i for i in lines if not 0 <= i.label < task.num_classes]:
            raise UserError(
                f"{where} give {_quoted(wrong[0].path)} of {split} the class {wrong[0].label}, "
                f"outside the {task.num_classes} classes (0 to {task.num_classes - 1})."
            )
    first = items["test"][0].path
    images = next(
        (folder / name for name in _IMAGE_FOLDERS if (folder / name / first).exists()), None
    )
    if images is None:
        tried = printable_line(" or ".join(str(folder / n / first) for n in _IMAGE_FOLDERS))
        raise UserError(f"{where} name images that are not there: expected {tried}.")
    prints = fingerprints(where, images, items)
    _check_once(where, kind, images, items)
    return Lists(kind, folder, images, items, class_names, prints)


def _check_once(where: str, kind: str, images: epath.Path, items: Mapping[str, list[Item]]) -> None:
    """UserError if an image is in test and elsewhere, twice in a list, or of two classes.

    NOAH's train lists may hold an image twice, those of Pets at 1 shot do.
    """
    identity = FileNames(images)
    first: dict[str, tuple[str, int, Item]] = {}
    shared: dict[str, list[str]] = {}
    for split in sorted(items, key=lambda name: name != "test"):  # test before the others
        for number, item in enumerate(items[split], 1):
            key = identity(item.path)
            other, place, before = first.setdefault(key, (split, number, item))
            if place == number and other == split:
                continue
            if item.label != before.label:
                raise UserError(
                    f"{where} give one image two classes: entry {number} of {split} is "
                    f"{_quoted(item.path)} of class {item.label}, entry {place} of {other} "
                    f"{_quoted(before.path)} of class {before.label}. Take the published lists "
                    "again."
                )
            if other == "test" and split != "test":
                shared.setdefault(split, []).append(item.path)
            elif other == split and (kind != "noah" or split in ("val", "test")):
                raise UserError(
                    f"{where} have an image twice in {split}: entries {place} and {number}, "
                    f"{_quoted(item.path)}. Take the published lists again."
                )
    for split, paths in shared.items():
        raise UserError(
            f"{where} have {len(set(paths))} images both in {split} and in test, "
            f"{printable_line(min(paths))} for one. Take the published lists again."
        )


class FileNames:
    """The same name for all paths of one file: links and '.' are resolved."""

    def __init__(self, root: epath.Path):
        self._root = os.fspath(root)
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        if "://" in self._root:
            return posixpath.normpath(path)
        whole = os.path.join(self._root, path)
        if os.path.islink(whole):
            return os.path.realpath(whole)
        folder, name = os.path.split(whole)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def fingerprints(where: str, images: epath.Path, items: dict[str, list[Item]]) -> dict[str, str]:
    """Of each list; UserError if images are not there."""
    digests, missing = {}, []
    for split, lines in items.items():
        digest = hashlib.sha256()
        for path, label in lines:
            try:
                line = f"{path} {label} {(images / path).stat().length}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
            except OSError:
                missing.append(path)
        digests[split] = digest.hexdigest()[:16]
    if missing:
        raise UserError(
            f"{where} name {sum(map(len, items.values()))} images; {len(missing)} of them are not "
            f"in {images}: {first_ten(missing)}. Complete the folder."
        )
    return digests
