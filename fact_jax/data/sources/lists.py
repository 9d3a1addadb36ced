"""Pictures that lists name, as a source.

The lists are read by `few_shot_lists.py` and `vtab1k.py`, or made from a folder by `folders.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
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
OWN = ("classes", "csv")  # kinds of lists that are made of one's own pictures
_KINDS = {
    "noah": "NOAH's lists",
    "coop": "CoOp's lists",
    "official": "the official lists",
    "classes": "the folders of classes",
    "csv": "the CSV file",
}


class Item(NamedTuple):
    """One line of a list: the path of the image, and its class, or all its labels (then 0)."""

    path: str
    label: int = 0
    labels: tuple[int, ...] | None = None


@dataclass
class ListsSource:
    """The pictures of lists, opened by whoever decodes them; a `Source`.

    Attributes:
      task: the task, whose classes and sizes are not looked at.
      kind: 'noah', 'coop', 'official' or 'vtab-1k'; 'classes' of a folder without
        lists, 'csv' of a CSV file.
      folder: the folder of the lists.
      images: the folder that their paths begin at.
      items: the lists by the names of their splits.
      class_names: None where the lists have none.
      fingerprints: of each list: its lines, and the sizes of the image files.
      note: how the lists were made, where they were not read.
      left_out: damaged pictures that were left out, and why.
      stored_jpeg: see `Source`.
      multi_label: whether an image has any number of labels.
    """

    task: Task
    kind: str
    folder: epath.Path
    images: epath.Path
    items: dict[str, list[Item]]
    class_names: list[str] | None
    fingerprints: dict[str, str]
    note: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    stored_jpeg: int | None = None
    multi_label: bool = False

    remedy = REMEDY
    mocked = False
    skips_damaged = True

    def __post_init__(self) -> None:
        self.splits = [*self.items, *(["train+val"] if self.kind in OWN else [])]
        self.place = printable_line(str(self.images))
        self.pool = f"the train list in {self.folder}"
        every = json.dumps(self.fingerprints, sort_keys=True)
        self.provenance: Provenance = {
            "task": self.task.name,
            "builder": FOLDER,
            "requested_version": None,
            "used_version": self.kind,
            "mapped": False,
            "note": self.note,
            "file_format": "files",
            "splits": {split: len(items) for split, items in self.items.items()},
            "mock": False,
            "data_dir": printable_line(str(self.folder)),
            "fingerprint": hashlib.sha256(every.encode()).hexdigest()[:16],
            "pillow": PIL.__version__,
        }
        if self.left_out:
            names = [printable_line(path) for path in list(self.left_out)[:10]]
            self.provenance |= {"skipped": len(self.left_out), "skipped_names": names}

    def size(self, split: str) -> int:
        return len(self._items(split))

    def records(self, split: str, size: int) -> Iterator[Record]:
        for path, label, labels in self._items(split)[:size]:
            yield Record(self.images / path, label, path, labels)

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        return np.array([item.label for item in self._items(split)])

    def identity(self, split: str) -> Identity:
        prints = [self.fingerprints[part] for part in split.split("+")]
        return {
            "fingerprint": prints[0] if self.task.few_shot else prints,
            "instruction": "",
            # 1 had 16-bit grey clipped at 255, which no published picture has.
            "format": 2 if self.kind in OWN else 1,
        }

    def describe_draw(self, shots: int) -> str:
        drawn = f"{shots} images a class drawn from its train list with default_rng(seed)"
        how = "its own lists for each seed" if self.kind == "noah" else drawn
        note = f" ({self.note})" if self.note else ""
        return f"{_KINDS[self.kind]} in {self.folder}{note}; train: {how}"

    def damaged(self, num_threads: int | None = None) -> dict[str, str]:
        paths = (item.path for items in self.items.values() for item in items)
        return find_damaged(self.images, paths, num_threads)

    def without_damaged(self) -> "ListsSource":
        """The source without its damaged pictures; UserError if a list has no others."""
        damaged = self.damaged()
        if not damaged:
            return self
        items = {k: [i for i in part if i.path not in damaged] for k, part in self.items.items()}
        if empty := [split for split, part in items.items() if not part]:
            raise UserError(f"All pictures of {empty[0]} in {self.images} are damaged.")
        prints = fingerprints(f"The lists in {self.folder}", self.images, items)
        return dataclasses.replace(self, items=items, fingerprints=prints, left_out=damaged)

    def _items(self, split: str) -> list[Item]:
        if split in self.splits:
            return [item for part in split.split("+") for item in self.items[part]]
        name = self.task.name
        if self.kind == "noah" and (few := self.task.few_shot):
            names = ", ".join(sorted(set(self.items) - {"val", "test"}))
            raise UserError(
                f"Task {name}: {self.folder / 'annotations'} has no list train_meta.list.num_shot_"
                f"{few.shots}.seed_{split.removeprefix('train-seed')}; it has those of {names}."
            )
        raise UserError(f"Task {name} has no split {split!r}; it has {', '.join(self.splits)}.")


def find_damaged(
    root: epath.Path, paths: Iterable[str], num_threads: int | None = None
) -> dict[str, str]:
    """Decodes every picture: paths of the damaged ones, and why they cannot be decoded."""
    once = list(dict.fromkeys(paths))
    reasons = pipeline.map_ahead(_damage, (root / path for path in once), 64, num_threads)
    return {path: why for path, why in zip(once, reasons, strict=True) if why}


def _damage(path: epath.Path) -> str:
    """Why a picture cannot be decoded; '' if it can."""
    try:
        with decoder.opened(path):
            return ""
    except OSError as error:
        return str(error)


def fingerprints(where: str, images: epath.Path, items: dict[str, list[Item]]) -> dict[str, str]:
    """Fingerprint of each list; UserError if images are not there."""
    digests, missing = {}, []
    for split, lines in items.items():
        digest = hashlib.sha256()
        for path, label, _ in lines:
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
