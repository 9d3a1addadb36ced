"""Reads files of lists, and checks their entries."""

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from etils import epath

from fact_jax.data.sources.lists import Item, ListsSource, fingerprints
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.images import decoder
from fact_jax.text import printable_line

_IMAGE_FOLDERS = ("images", "jpg", "")
_MOST_BYTES = 64 << 20  # of one list; Food-101's largest has 3 MB


def read_lines(path: epath.Path) -> list[Item]:
    """The entries of a file of lines "PATH LABEL"; UserError with the line that is none."""
    items = []
    for number, line in numbered(path):
        name, _, label = line.rpartition(" ")
        what = f"{path}, line {number}: expected an image's path, a space and its class, found"
        items.append(make_item(name, label, f"{what} {quoted(line)}"))
    return items


def make_item(path: object, label: object, what: str) -> Item:
    """One entry of a list; UserError with `what` in it and the reason where it makes no sense."""
    reason = ""
    if not isinstance(path, str) or not path:
        raise UserError(f"{what} (the path or the class is missing).")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        reason = "its path leads out of the folder of the images"
    elif "\0" in path:
        reason = "its path has a NUL character"
    elif isinstance(label, bool) or not re.fullmatch("[0-9]{1,9}", str(label)[:10]):
        reason = "its class is no number from 0 to 999999999"
    if reason:
        raise UserError(f"{what} ({reason}).")
    return Item(path, int(str(label)))


def quoted(value: object) -> str:
    """The beginning of a text or another value, as a message shows it."""
    return ascii(value[:100] if isinstance(value, str) else value)[:120]


def numbered(path: epath.Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, and their numbers from 1."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def read_text(path: epath.Path) -> str:
    """The text of a list; UserError if it cannot be read, is too long, or is not UTF-8."""
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


def check_images(
    task: Task,
    kind: str,
    folder: epath.Path,
    items: dict[str, list[Item]],
    class_names: list[str] | None,
) -> ListsSource:
    """The source of these lists, if they make sense and all images are there."""
    where = f"Task {task.name}: the lists in {folder}"
    sizes = task.few_shot.list_sizes if task.few_shot else task.sizes
    for split, lines in items.items():
        expected = sizes.get(split)
        if not lines or (expected is not None and len(lines) != expected):
            raise UserError(
                f"{where} have {len(lines)} images for {split}, expected {expected or 'some'}. "
                f"Take the published lists again."
            )
        if wrong := [i for i in lines if not 0 <= i.label < task.num_classes]:
            raise UserError(
                f"{where} give {quoted(wrong[0].path)} of {split} the class {wrong[0].label}, "
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
    return ListsSource(task, kind, folder, images, items, class_names, prints)


def _check_once(where: str, kind: str, images: epath.Path, items: Mapping[str, list[Item]]) -> None:
    """UserError if an image is in test and elsewhere, twice in a list, or of two classes.

    NOAH's train lists may hold an image twice: the lists of Pets at 1 shot do.
    """
    folders: dict[str, str] = {}
    first: dict[str, tuple[str, int, Item]] = {}
    shared: dict[str, list[str]] = {}
    for split in sorted(items, key=lambda name: name != "test"):  # test before the others
        for number, item in enumerate(items[split], 1):
            key = same_file(images, item.path, folders)
            other, place, before = first.setdefault(key, (split, number, item))
            if place == number and other == split:
                continue
            if item.label != before.label:
                raise UserError(
                    f"{where} give one image two classes: entry {number} of {split} is "
                    f"{quoted(item.path)} of class {item.label}, entry {place} of {other} "
                    f"{quoted(before.path)} of class {before.label}. Take the published lists "
                    "again."
                )
            if other == "test" and split != "test":
                shared.setdefault(split, []).append(item.path)
            elif other == split and (kind != "noah" or split in ("val", "test")):
                raise UserError(
                    f"{where} have an image twice in {split}: entries {place} and {number}, "
                    f"{quoted(item.path)}. Take the published lists again."
                )
    for split, paths in shared.items():
        raise UserError(
            f"{where} have {len(set(paths))} images both in {split} and in test, "
            f"{printable_line(min(paths))} for one. Take the published lists again."
        )


def same_file(root: epath.Path, path: str, folders: dict[str, str]) -> str:
    """The same name for all paths of one file; the folders' names are kept in `folders`."""
    whole = os.path.join(os.fspath(root), path)
    if "://" in whole:
        return posixpath.normpath(path)
    if os.path.islink(whole):
        return os.path.realpath(whole)
    folder, name = os.path.split(whole)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)
