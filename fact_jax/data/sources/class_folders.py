"""The pictures of a folder with a subfolder for each class, as they lie on the disk."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from fact_jax.errors import UserError
from fact_jax.images import decoder
from fact_jax.images.walk import Walk
from fact_jax.text import printable_line

TRAIN, VAL, TEST = "train", "val", "test"
_VAL_FOLDERS = ("val", "valid", "validation")


class Picture(NamedTuple):
    """Path of a picture from the task's folder, and its class."""

    path: str
    class_name: str


class Parts(NamedTuple):
    """Pictures of the parts that have folders of their own.

    Attributes:
      pictures: of 'train', and of 'val' and 'test' where there are any.
      source: where each part comes from.
      note: what was left out, in words.
    """

    pictures: dict[str, list[Picture]]
    source: dict[str, str]
    note: str


Sound = Callable[[list[str]], set[str]]  # the paths that can be decoded


def read_parts(where: str, root: epath.Path, sound: Sound | None = None) -> Parts:
    """The pictures of each part, in the order of their names.

    Args:
      where: how messages begin.
      root: the task's folder.
      sound: leaves out pictures; None for none.

    Raises:
      UserError: a class without pictures, parts or names that contradict each other.
    """
    source = _sources(where, root)
    folders = {part: root / text.partition("/")[0] for part, text in source.items()}
    classes = {part: _subfolders(folder) for part, folder in folders.items()}
    _check_names(where, sorted({c.name for every in classes.values() for c in every}))
    walk = Walk(entered={root, *folders.values()})
    every = [folder for part in classes.values() for folder in part]
    paths = dict(zip(every, walk.pictures(every), strict=True))
    pictures = {}
    for part, folder in folders.items():
        if not classes[part]:
            raise UserError(
                f"{where} {folder} has no subfolders. Expected one for each class, with its "
                "pictures."
            )
        pictures[part] = [
            Picture(path.relative_to(root).as_posix(), subfolder.name)
            for subfolder in classes[part]
            for path in paths[subfolder]
        ]
    if sound is not None:
        good = sound([p.path for part in pictures.values() for p in part])
        pictures = {k: [p for p in part if p.path in good] for k, part in pictures.items()}
    for part, subfolders in classes.items():
        _check_filled(where, subfolders, {p.class_name for p in pictures[part]}, walk)
    return Parts(pictures, source, walk.note())


def _sources(where: str, root: epath.Path) -> dict[str, str]:
    """Origin of the parts: 'train/' and so on, or '.' without such folders."""
    train = root / "train"
    if not (train.is_dir() and _subfolders(train)):
        return {TRAIN: "."}
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
    return source


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())
    except OSError as error:
        raise UserError(
            f"The folder {printable_line(str(folder))} cannot be read ({error.strerror}). Allow "
            "it, or move the folder away."
        ) from error


def _check_names(where: str, names: list[str]) -> None:
    """UserError if two names look alike because Unicode writes one text in two ways."""
    alike = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFC", name)].append(name)
    for forms in alike.values():
        if len(forms) > 1:
            raise UserError(
                f"{where} two class folders look alike but are written differently in Unicode, as "
                f"composed and as separate characters (NFC and NFD): {ascii(forms[0])} and "
                f"{ascii(forms[1])}. Rename one of them, or move its pictures to the other."
            )


def _check_filled(where: str, folders: list[epath.Path], filled: set[str], walk: Walk) -> None:
    """UserError if a class folder has no pictures."""
    for folder in folders:
        if folder.name not in filled:
            why = walk.left_out.get(str(folder))
            raise UserError(
                f"{where} the class folder {printable_line(str(folder))} has no pictures: "
                + (f"it is {why}." if why else "no sound file whose name ends in ")
                + ("" if why else f"{', '.join(sorted(decoder.suffixes()))}.")
            )
