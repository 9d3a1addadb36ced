"""Folders of images with the few-shot lists that people have: NOAH's, CoOp's, Aircraft's own.

A folder is looked for in the data directory under the names of the task's `folders`:

    food-101/annotations/train_meta.list.num_shot_4.seed_0    NOAH: lines "PATH LABEL"
    food-101/annotations/{val,test}_meta.list
    food-101/split_zhou_Food101.json                          CoOp: {"train": [[path, label, name]]}
    fgvc_aircraft/images_variant_{train,val,test}.txt         official: lines "NUMBER VARIANT"
    food-101/images/apple_pie/1005649.jpg                     or jpg/..., or beside the lists

NOAH's few-shot lists are read as they are (at 1 shot the lists of Pets hold every image twice).
From the others, K images a class are drawn (`shots.draw`).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from fact_jax.data.sources.list_files import check_images, make_item, numbered, quoted, read_lines
from fact_jax.data.sources.lists import Item, ListsSource
from fact_jax.data.tasks import FewShot, Task
from fact_jax.errors import UserError
from fact_jax.files.json_reader import read_json
from fact_jax.text import printable_line


class _Read(NamedTuple):
    """Lists by split, and the names of the classes where the lists have them."""

    items: dict[str, list[Item]]
    class_names: list[str] | None = None


def list_folders(few_shot: FewShot, root: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
    """Yields the lists in `root`, best first: their kind, their folder and one of their files."""
    files = {"noah": "annotations/test_meta.list"}
    if few_shot.json:
        files["coop"] = few_shot.json
    else:
        files["official"] = "images_variant_train.txt"
    for folder in (epath.Path(root).expanduser() / name for name in few_shot.folders):
        for kind, file in files.items():
            if (folder / file).exists():
                yield kind, folder, folder / file


def find_lists(task: Task, root: str) -> ListsSource | None:
    """The first of the task's folders in `root` that has lists; None if none has.

    Raises:
      UserError: lists that cannot be read, do not have the published sizes or share images
        between train and test; images that are not there; NOAH's lists, but not for these shots.
    """
    few, without = task.few_shot, None
    if few is None:
        return None
    for kind, folder, file in list_folders(few, root):
        if kind == "noah":
            lists = _noah(file.parent, few.shots)
        elif kind == "coop":
            lists = _coop(file, task.num_classes)
        else:
            lists = _official(folder)
        if lists.items:
            return check_images(task, kind, folder, *lists)
        without = file.parent
    if without is not None:
        raise UserError(
            f"Task {task.name}: {without} has NOAH's lists, but none named "
            f"train_meta.list.num_shot_{few.shots}.seed_S, and there are no others to draw "
            f"{few.shots} images a class from. NOAH has 1, 2, 4, 8 and 16 shots."
        )
    return None


def _noah(annotations: epath.Path, shots: int) -> _Read:
    """The lists for these shots; none if there is no training list for them."""
    items = {}
    for path in sorted(annotations.glob(f"train_meta.list.num_shot_{shots}.seed_*")):
        if match := re.search(r"\.seed_(\d+)$", path.name):
            items[f"train-seed{int(match[1])}"] = read_lines(path)
    if items:
        for split in ("val", "test"):
            items[split] = read_lines(annotations / f"{split}_meta.list")
    return _Read(items)


def _coop(path: epath.Path, num_classes: int) -> _Read:
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
            what = f"{expected}; entry {number} of {split} is {quoted(entry)}"
            if not isinstance(entry, list) or len(entry) != 3:
                raise UserError(f"{what} (it does not have three values).")
            items[split].append(make_item(entry[0], entry[1], what))
            names[items[split][-1].label] = printable_line(str(entry[2]))
    return _Read(items, [names.get(label, str(label)) for label in range(num_classes)])


def _official(folder: epath.Path) -> _Read:
    names = [line for _, line in numbered(folder / "variants.txt")]
    items: dict[str, list[Item]] = {}
    for split in ("train", "val", "test"):
        path = folder / f"images_variant_{split}.txt"
        items[split] = []
        for number, line in numbered(path):
            image, _, name = line.partition(" ")
            if name not in names:
                raise UserError(f"{path}, line {number}: {quoted(name)} is not in variants.txt.")
            what = f"{path}, line {number}: found {quoted(line)}"
            items[split].append(make_item(f"{image}.jpg", names.index(name), what))
    return _Read(items, [printable_line(name) for name in names])
