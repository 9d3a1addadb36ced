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
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath

from fact_jax.data.fewshot import FewShotTask
from fact_jax.errors import UserError

_IMAGE_FOLDERS = ("images", "jpg", "")


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
    """

    kind: str
    folder: epath.Path
    images: epath.Path
    items: dict[str, list[Item]]
    class_names: list[str] | None
    fingerprints: dict[str, str]
    note: str = ""

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
    for number, line in enumerate(_text(path).splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not name or not label.isdigit():
            raise UserError(
                f"{path}, line {number}: expected an image's path, a space and its class, "
                f"found {line[:100]!r}."
            )
        items.append(Item(name, int(label)))
    return items


def _text(path: epath.Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path} cannot be read ({error}).") from error


def _coop(task: FewShotTask, folder: epath.Path) -> _Found | None:
    if task.json is None or not (folder / task.json).exists():
        return None
    names: dict[int, str] = {}
    items: dict[str, list[Item]] = {}
    try:
        content = json.loads(_text(folder / task.json))
        for split in ("train", "val", "test"):
            items[split] = [Item(str(path), int(label)) for path, label, _ in content[split]]
            names |= {int(label): str(name) for _, label, name in content[split]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / task.json}: expected train, val and test, each a list of [path, class, "
            f"name of the class] ({type(error).__name__}: {error})."
        ) from error
    return items, [names.get(label, str(label)) for label in range(task.num_classes)]


def _official(task: FewShotTask, folder: epath.Path) -> _Found | None:
    if task.dataset != "fgvc_aircraft" or not (folder / "images_variant_train.txt").exists():
        return None
    names = [line.strip() for line in _text(folder / "variants.txt").splitlines() if line.strip()]
    items: dict[str, list[Item]] = {}
    for split in ("train", "val", "test"):
        path = folder / f"images_variant_{split}.txt"
        items[split] = []
        for number, line in enumerate(_text(path).splitlines(), 1):
            image, _, name = line.strip().partition(" ")
            if name not in names:
                raise UserError(f"{path}, line {number}: {name!r} is not in variants.txt.")
            items[split].append(Item(f"{image}.jpg", names.index(name)))
    return items, names


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
                f"{where} give {wrong[0].path} of {split} the class {wrong[0].label}, outside "
                f"the {task.num_classes} classes (0 to {task.num_classes - 1})."
            )
    test = {item.path for item in items["test"]}
    for split, lines in items.items():
        if split != "test" and (shared := test.intersection(item.path for item in lines)):
            raise UserError(
                f"{where} have {len(shared)} images both in {split} and in test, {min(shared)} "
                f"for one. Take the published lists again."
            )
    first = items["test"][0].path
    images = next(
        (folder / name for name in _IMAGE_FOLDERS if (folder / name / first).exists()), None
    )
    if images is None:
        tried = " or ".join(str(folder / name / first) for name in _IMAGE_FOLDERS)
        raise UserError(f"{where} name images that are not there: expected {tried}.")
    return Lists(kind, folder, images, items, class_names, fingerprints(where, images, items))


def fingerprints(where: str, images: epath.Path, items: dict[str, list[Item]]) -> dict[str, str]:
    """Of each list; UserError if images are not there."""
    digests, missing = {}, []
    for split, lines in items.items():
        digest = hashlib.sha256()
        for path, label in lines:
            try:
                digest.update(f"{path} {label} {(images / path).stat().length}\n".encode())
            except OSError:
                missing.append(path)
        digests[split] = digest.hexdigest()[:16]
    if missing:
        raise UserError(
            f"{where} name {sum(map(len, items.values()))} images; {len(missing)} of them are not "
            f"in {images}, {missing[0]} for one. Complete the folder."
        )
    return digests
