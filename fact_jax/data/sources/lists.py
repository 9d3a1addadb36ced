"""Pictures that lists name, as a source.

The lists are read by `few_shot_lists.py` and `vtab1k.py`, or made from a folder by `folders.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import PIL
from etils import epath
from jaxtyping import Int

from fact_jax.data.sources import Identity, Provenance, Record
from fact_jax.data.tasks import FOLDER, Task
from fact_jax.errors import UserError
from fact_jax.images import decoder, pipeline
from fact_jax.text import first_ten, printable_line

REMEDY = (
    "Put a sound copy in its place, or remove the file; config.skip_damaged=True leaves such "
    "pictures out."
)
_KINDS = {
    "noah": "NOAH's lists",
    "coop": "CoOp's lists",
    "official": "the official lists",
    "classes": "the folders of classes",
}


class Item(NamedTuple):
    """One line of a list: where the image is, and its class."""

    path: str
    label: int


@dataclass(frozen=True)
class Lists:
    """The lists of one folder.

    Attributes:
      kind: 'noah', 'coop', 'official' or 'vtab-1k'; 'classes' of a folder without lists.
      folder: where the lists are.
      images: what their paths begin at.
      items: the lists by the names of their splits.
      class_names: None where the lists have none.
      fingerprints: of each list: its lines, and the sizes of the image files.
      note: how the lists were made, where they were not read.
      damaged: pictures that were left out, and why.
      stored_jpeg: see `Source`.
    """

    kind: str
    folder: epath.Path
    images: epath.Path
    items: dict[str, list[Item]]
    class_names: list[str] | None
    fingerprints: dict[str, str]
    note: str = ""
    damaged: dict[str, str] = field(default_factory=dict)
    stored_jpeg: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each list."""
        return {split: len(items) for split, items in self.items.items()}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all the lists."""
        every = json.dumps(self.fingerprints, sort_keys=True)
        return hashlib.sha256(every.encode()).hexdigest()[:16]


class ListsSource:
    """The pictures of lists, opened by whoever decodes them; a `Source`."""

    remedy = REMEDY
    mocked = False

    def __init__(self, task: Task, lists: Lists):
        self.lists, self._task = lists, task
        self.splits = [*lists.items, *(["train+val"] if lists.kind == "classes" else [])]
        self.class_names = lists.class_names
        self.place = printable_line(str(lists.images))
        self.pool = f"the train list in {lists.folder}"
        self.stored_jpeg = lists.stored_jpeg
        self.provenance: Provenance = {
            "task": task.name,
            "builder": FOLDER,
            "requested_version": None,
            "used_version": lists.kind,
            "mapped": False,
            "note": lists.note,
            "file_format": "files",
            "splits": lists.sizes,
            "mock": False,
            "data_dir": printable_line(str(lists.folder)),
            "fingerprint": lists.fingerprint,
            "pillow": PIL.__version__,
        }
        if lists.damaged:
            names = [printable_line(path) for path in list(lists.damaged)[:10]]
            self.provenance |= {"skipped": len(lists.damaged), "skipped_names": names}

    def size(self, split: str) -> int:
        return len(self._items(split))

    def records(self, split: str, size: int) -> Iterator[Record]:
        for path, label in self._items(split)[:size]:
            yield Record(self.lists.images / path, label, path)

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return np.array([item.label for item in self._items(split)])

    def identity(self, split: str) -> Identity:
        lists = self.lists
        prints = [lists.fingerprints[part] for part in split.split("+")]
        return {
            "fingerprint": prints[0] if self._task.few_shot else prints,
            "instruction": "",
            # 1 had 16-bit grey clipped at 255, which no published picture has.
            "format": 2 if lists.kind == "classes" else 1,
        }

    def describe_draw(self, shots: int) -> str:
        lists = self.lists
        drawn = f"{shots} images a class drawn from its train list with default_rng(seed)"
        how = "its own lists for each seed" if lists.kind == "noah" else drawn
        note = f" ({lists.note})" if lists.note else ""
        return f"{_KINDS[lists.kind]} in {lists.folder}{note}; train: {how}"

    def damaged(self, num_threads: int | None) -> dict[str, str]:
        paths = dict.fromkeys(item.path for items in self.lists.items.values() for item in items)
        return find_damaged(self.lists.images, list(paths), num_threads)

    def _items(self, split: str) -> list[Item]:
        lists, name = self.lists, self._task.name
        if split in self.splits:
            return [item for part in split.split("+") for item in lists.items[part]]
        if lists.kind == "noah" and (few := self._task.few_shot):
            names = ", ".join(sorted(set(lists.items) - {"val", "test"}))
            raise UserError(
                f"Task {name}: {lists.folder / 'annotations'} has no list train_meta.list.num_shot_"
                f"{few.shots}.seed_{split.removeprefix('train-seed')}; it has those of {names}."
            )
        raise UserError(f"Task {name} has no split {split!r}; it has {', '.join(self.splits)}.")


def find_damaged(
    root: epath.Path, paths: Sequence[str], num_threads: int | None = None
) -> dict[str, str]:
    """Decodes every picture: the paths of those that cannot be decoded, and why."""
    reasons = pipeline.map_ahead(_damage, (root / path for path in paths), 64, num_threads)
    return {path: why for path, why in zip(paths, reasons, strict=True) if why}


def _damage(path: epath.Path) -> str:
    """Why a picture cannot be decoded; '' if it can."""
    try:
        with decoder.opened(path):
            return ""
    except OSError as error:
        return str(error)


def without_damaged(lists: Lists) -> Lists:
    """The lists without the lines of damaged pictures."""
    paths = list(dict.fromkeys(item.path for items in lists.items.values() for item in items))
    damaged = find_damaged(lists.images, paths)
    if not damaged:
        return lists
    items = {k: [i for i in part if i.path not in damaged] for k, part in lists.items.items()}
    if empty := [split for split, part in items.items() if not part]:
        raise UserError(f"All pictures of {empty[0]} in {lists.images} are damaged.")
    prints = fingerprints(f"The lists in {lists.folder}", lists.images, items)
    return dataclasses.replace(lists, items=items, fingerprints=prints, damaged=damaged)


def fingerprints(where: str, images: epath.Path, items: dict[str, list[Item]]) -> dict[str, str]:
    """Fingerprint of each list; UserError if images are not there."""
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
