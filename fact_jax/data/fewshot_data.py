"""Reading few-shot tasks: from a folder of images with lists, else through TFDS."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from fact_jax.data import folders, lists, prepare
from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.folders import FolderData, with_sizes
from fact_jax.data.source import CACHE_KEY, DataSettings, TaskData, data_root, find_prepared
from fact_jax.data.tasks import FOLDER
from fact_jax.errors import UserError
from fact_jax.images import augment, decoder, pipeline

_KINDS = {
    "noah": "NOAH's lists",
    "coop": "CoOp's lists",
    "official": "the official lists",
    "classes": "the folders of classes",
}
HELD_OUT_SEED = 2**31  # of the images kept for 'val'; lists are drawn with small seeds


def open_few_shot(task: FewShotTask, settings: DataSettings) -> FewShotData:
    """The lists of a folder in the data directory if there are any, else TFDS's official splits.

    Raises:
      UserError: lists that are not as they should be, or what `open_task` raises.
    """
    if task.builder == FOLDER:
        folders.refuse_mock(task, settings)
        folder, skip = task.folders[0], settings.skip_damaged
        own = folders.read_folder(task.name, folder, settings.data_dir, skip)
        return ListedData(with_sizes(task, own, split_sizes=own.sizes), settings, own)
    if task.folders and not settings.mock:
        found = lists.find_lists(task, data_root(settings.data_dir))
        if found:
            found = without_damaged(found) if settings.skip_damaged else found
            return ListedData(task, settings, found)
    return FewShotData(task, settings, *find_prepared(task, settings))


def without_damaged(found: lists.Lists) -> lists.Lists:
    """The lists without the lines of damaged pictures."""
    paths = list(dict.fromkeys(item.path for own in found.items.values() for item in own))
    damaged = folders.find_damaged(found.images, paths)
    if not damaged:
        return found
    items = {k: [i for i in own if i.path not in damaged] for k, own in found.items.items()}
    if empty := [split for split, own in items.items() if not own]:
        raise UserError(f"All pictures of {empty[0]} in {found.images} are damaged.")
    prints = lists.fingerprints(f"The lists in {found.folder}", found.images, items)
    return dataclasses.replace(found, items=items, fingerprints=prints, damaged=damaged)


class FewShotData(TaskData):
    """A few-shot task from TFDS: 'train-seed0', 'train-seed1', ..., 'val' and 'test'.

    Attributes:
      task: the `FewShotTask`.
      provenance: that of `TaskData`, and `shots`, `split_source` (which lists, or how they were
        drawn) and `numpy`, whose generator drew them.
    """

    task: FewShotTask

    def __init__(
        self, task: FewShotTask, settings: DataSettings, found: prepare.Found, mocked: bool
    ):
        super().__init__(task, settings, found, mocked)
        val = (
            f"{task.held_out} images a class of {task.splits['train']} (default_rng"
            f"({HELD_OUT_SEED}), before the lists were drawn)"
            if task.held_out
            else task.splits["val"]
        )
        self._few_shot_record(
            f"{task.shots} images a class drawn from {task.splits['train']} of TFDS's "
            f"{found.builder.info.full_name} with numpy's default_rng(seed); val: {val}; "
            f"test: {task.splits['test']}" + ("; mocked: nothing was drawn" if mocked else "")
        )

    def _few_shot_record(self, split_source: str) -> None:
        self._encoded: dict[str, list[Mapping[str, Any]]] = {}
        self.provenance |= {
            "shots": self.task.shots,
            "split_source": split_source,
            "numpy": np.__version__,
        }

    def views(self, split: str, epoch_seed: int, limit: int | None = None) -> np.ndarray:
        """One augmented view of each training image, uint8 [n, s, s, 3], in the order of `load`.

        It depends on the split, its image and `epoch_seed` (at least 0) alone. The encoded images
        are read by `keep`, if they are not in memory yet.
        """
        seed = self._seed(split)
        if seed is None:
            raise UserError(f"Split {split!r} has no augmented views, only training lists have.")
        self.keep(split)
        settings = self._settings

        def view(numbered: tuple[int, Mapping[str, Any]]) -> np.ndarray:
            index, example = numbered
            rng = np.random.default_rng([seed, epoch_seed, index])
            encoded = example[self.task.image_key]
            with (
                self._sound(index, example),
                decoder.opened(encoded, settings.jpeg_quality, self.task.binary) as image,
            ):
                return augment.augment(image, settings.image_size, rng)

        examples = self._encoded[split][: self.size(split, limit)]
        ahead = 2 * (settings.num_threads or 8)
        return np.stack(
            list(pipeline.map_ahead(view, enumerate(examples), ahead, settings.num_threads))
        )

    def keep(self, split: str) -> None:
        """Reads the encoded images of a training list into memory, where they stay for `views`."""
        if split not in self._encoded:
            self._encoded[split] = list(self._records(split, None))

    def forget(self) -> None:
        """Lets go of what `keep` has read."""
        self._encoded.clear()

    def _seed(self, split: str) -> int | None:
        """The seed of a training list, None for another split."""
        if match := re.fullmatch(r"train-seed(\d{1,9})", split):
            return int(match[1])
        if split not in ("val", "test"):
            raise UserError(
                f"Task {self.task.name} has no split {split!r}; it has train-seed0, train-seed1 "
                f"and so on, val and test."
            )
        return None

    def _whole_size(self, split: str) -> int:
        if self._seed(split) is not None:
            return self.task.shots * self.task.num_classes
        if split == "val" and self.task.held_out:
            return self.task.held_out * self.task.num_classes
        return self.task.sizes[split]

    def _records(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        size, seed = self.size(split, limit), self._seed(split)
        if split in self.task.splits:
            yield from self._read(self.task.splits[split], size)
            return
        pool = self.task.splits["train"]
        if self._mocked:  # random labels: there may be too few of a class to draw from
            yield from self._read(pool, size)
            return
        rows = self._held_out if seed is None else self._drawn(seed)
        wanted, last = set(rows[:size].tolist()), int(rows[size - 1])
        for row, example in enumerate(self._read(pool, last + 1)):
            if row in wanted:
                yield example

    @cached_property
    def _pool_labels(self) -> np.ndarray:
        """Classes of the images that lists are drawn from, read without the images."""
        size = self.task.sizes["train"]
        examples = self._read(self.task.splits["train"], size, with_images=False)
        return np.array([self._label(i, example) for i, example in enumerate(examples)])

    @cached_property
    def _held_out(self) -> np.ndarray:
        what = f"Task {self.task.name}: {self._place}"
        return self._draw(self._pool_labels, self.task.held_out, HELD_OUT_SEED, what)

    def _drawn(self, seed: int) -> np.ndarray:
        task = self.task
        free = np.arange(len(self._pool_labels))
        if task.held_out:
            free = np.setdiff1d(free, self._held_out)
        what = f"Task {task.name}: {self._place}, with {task.held_out} a class kept for val,"
        return free[self._draw(self._pool_labels[free], task.shots, seed, what)]

    def _draw(self, labels: Any, shots: int, seed: int, what: str) -> np.ndarray:
        return lists.draw(labels, self.task.num_classes, shots, seed, what, self.class_names)

    def _cache_key(self, split: str, size: int) -> dict[str, Any]:
        """As `TaskData`'s; val and test of one set are shared by all numbers of shots."""
        task = self.task
        key = {name: self.provenance[name] for name in CACHE_KEY}
        if self._seed(split) is None and split in task.splits:
            how = task.splits[split]
        else:
            kept = f"{task.splits.get('train')}, {task.held_out} held out"
            how = f"{kept}, {task.shots if split != 'val' else 0} shots, numpy {np.__version__}"
        return {
            **key,
            "task": task.dataset,
            "split": split,
            "instruction": how,
            "size": size,
            "format": 1,
        }


class ListedData(FolderData, FewShotData):
    """A few-shot task from a folder of images, with lists or with a subfolder for each class."""

    task: FewShotTask

    def __init__(self, task: FewShotTask, settings: DataSettings, found: lists.Lists):
        FolderData.__init__(self, task, settings, found)
        drawn = f"{task.shots} images a class drawn from its train list with default_rng(seed)"
        how = "its own lists for each seed" if found.kind == "noah" else drawn
        note = f" ({found.note})" if found.note else ""
        self._few_shot_record(f"{_KINDS[found.kind]} in {found.folder}{note}; train: {how}")

    def _items(self, split: str) -> list[lists.Item]:
        seed, items = self._seed(split), self._lists.items
        if seed is None:
            return items[split]
        if "train" in items:
            what = f"Task {self.task.name}: the train list in {self._lists.folder}"
            labels = [item.label for item in items["train"]]
            return [items["train"][i] for i in self._draw(labels, self.task.shots, seed, what)]
        if f"train-seed{seed}" not in items:
            known = ", ".join(sorted(set(items) - {"val", "test"}))
            raise UserError(
                f"Task {self.task.name}: {self._lists.folder / 'annotations'} has no list "
                f"train_meta.list.num_shot_{self.task.shots}.seed_{seed}; it has those of {known}."
            )
        return items[f"train-seed{seed}"]

    def _cache_key(self, split: str, size: int) -> dict[str, Any]:
        seed, prints = self._seed(split), self._lists.fingerprints
        drawn = seed is not None and "train" in prints
        return {
            **{name: self.provenance[name] for name in CACHE_KEY},
            "task": self.task.dataset,
            "split": split,
            "fingerprint": prints["train" if drawn else split],
            "instruction": f"{self.task.shots} shots, numpy {np.__version__}" if drawn else "",
            "size": size,
            "format": 2 if self._lists.kind == "classes" else 1,  # 1 clipped 16-bit grey
        }
