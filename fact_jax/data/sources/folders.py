"""A data set of one's own: a folder of pictures with a subfolder for each class.

    DATA_DIR/flowers/train/daisy/1.jpg    beside train/ there may be val/ and test/
    DATA_DIR/flowers/daisy/1.jpg          or no such folders: the parts are drawn

It is the task 'folder_flowers' (and 'folder_flowers_4shot'). Missing parts are drawn: the test part
where neither test/ nor val/ holds labelled pictures, then the part that settings are chosen on.
Classes are numbered in the order of their names, as by torchvision's ImageFolder.
"""

import hashlib
import os
from collections.abc import Mapping
from functools import partial

import numpy as np
from etils import epath

from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.class_folders import TEST, TRAIN, VAL, Parts, read_parts
from fact_jax.data.sources.lists import REMEDY, Item, ListsSource
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.images import decoder, pipeline
from fact_jax.text import first_ten, printable_line

DRAWN_SHARE = 5  # one image in five of each class is drawn, at least one where there are two
_SEED = 2**31  # of all draws


def read_folder(task: Task, settings: DataSettings) -> ListsSource:
    """The pictures of the task's folder as lists 'train', 'val' and 'test', the classes mixed.

    With `skip_damaged` the lists are drawn as from a folder without its damaged pictures.

    Raises:
      UserError: mock data are asked for, or there is no such folder, or it has fewer than two
        classes, or a class without pictures, or too few of them.
    """
    where, root = f"Task {task.name}:", _root(task, settings)
    parts = read_parts(where, root, settings.skip_damaged)
    names = sorted(parts.pictures[TRAIN])
    _check_classes(where, root, names, parts)
    items = {
        part: [Item(path, names.index(name)) for name, paths in classes.items() for path in paths]
        for part, classes in parts.pictures.items()
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
    items = {
        part: [items[part][i] for i in np.random.default_rng(_SEED).permutation(len(items[part]))]
        for part in (TRAIN, VAL, TEST)
    }
    note = "; ".join(f"{part}: {source[part]}" for part in (TRAIN, VAL, TEST))
    if drawn := [part for part in (TEST, VAL) if "one image" in source[part]]:
        note += f" (default_rng({_SEED}) drew {' and '.join(drawn)} from train)"
    if parts.note:
        note += f"; {parts.note}"
    return ListsSource(
        task=task,
        kind="classes",
        folder=root,
        images=root,
        items=items,
        class_names=[printable_line(name) for name in names],
        fingerprints=_fingerprints(where, root, items),
        note=note,
        left_out=parts.damaged,
    )


def _root(task: Task, settings: DataSettings) -> epath.Path:
    """The task's folder; UserError if there is none."""
    where = f"Task {task.name}:"
    if settings.mock:
        raise UserError(
            f"{where} config.mock_data is True, but a folder has no mock data. Set it to False."
        )
    if not settings.data_dir:
        raise UserError(
            f"{where} config.data_dir (--data_dir) is empty. It must be the folder in which "
            f"{task.folder!r} lies."
        )
    root = epath.Path(settings.data_dir).expanduser() / task.folder
    if not root.is_dir():
        raise UserError(
            f"{where} {root} is no folder. Expected {root}/train/CLASS/*.jpg and "
            f"{root}/test/CLASS/*.jpg, or {root}/CLASS/*.jpg."
        )
    return root


def _check_classes(where: str, root: epath.Path, names: list[str], parts: Parts) -> None:
    """UserError if the parts have other classes than train, or there is only one."""
    shown = [printable_line(name) for name in names]
    for part, classes in parts.pictures.items():
        if unknown := sorted(set(classes) - set(names)):
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


def _hold_out(items: list[Item], num_classes: int) -> tuple[list[Item], list[Item]]:
    """Splits the items into the remaining ones and one in `DRAWN_SHARE` of each class."""
    labels, rng = np.array([item.label for item in items]), np.random.default_rng(_SEED)
    held: set[int] = set()
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held.update(rows[: max(len(rows) // DRAWN_SHARE, int(len(rows) > 1))].tolist())
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )


def _fingerprints(where: str, root: epath.Path, items: Mapping[str, list[Item]]) -> dict[str, str]:
    """Fingerprint of each part: paths, classes and contents."""
    prints: dict[str, str] = {}
    unread: list[str] = []
    for part, pictures in items.items():
        whole = hashlib.sha256()
        for line, error in pipeline.map_ahead(partial(_digest, root), pictures, ahead=64):
            whole.update(line)
            unread += [error] if error else []
        prints[part] = whole.hexdigest()[:16]
    if unread:
        raise UserError(f"{where} {first_ten(sorted(unread))} cannot be read. {REMEDY}")
    return prints


def _digest(root: epath.Path, item: Item) -> tuple[bytes, str]:
    """A line with the path, class and content of a picture, and why it cannot be read, if so."""
    try:
        with decoder.reading(root / item.path) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return b"", f"{root / item.path} ({error.strerror or error})"
    return os.fsencode(f"{item.path} {item.label} {content}\n"), ""
