"""The pictures of a folder with a subfolder for each class, as they lie on the disk."""

import itertools
import unicodedata
from collections import defaultdict
from typing import NamedTuple

from etils import epath

from fact_jax.data.sources.lists import find_damaged
from fact_jax.errors import UserError
from fact_jax.images import decoder
from fact_jax.images.walk import Walk
from fact_jax.text import printable_line

TRAIN, VAL, TEST = "train", "val", "test"
_VAL_FOLDERS = ("val", "valid", "validation")
# Names in lower case that a folder with a folder for each class in it may have, but no class has.
_LIKE_PARTS = {"train", "training", "test", "testing", *_VAL_FOLDERS}


class Parts(NamedTuple):
    """Pictures of the parts that have folders of their own.

    Attributes:
      pictures: their paths from the task's folder by class, of 'train', and of 'val' and 'test'
        where there are any.
      source: where each part comes from.
      damaged: pictures that were left out, and why.
      note: the files and folders that are not taken, in words.
    """

    pictures: dict[str, dict[str, list[str]]]
    source: dict[str, str]
    damaged: dict[str, str]
    note: str


def read_parts(where: str, root: epath.Path, skip_damaged: bool) -> Parts:
    """The pictures of each part, in the order of their names.

    Args:
      where: how messages begin.
      root: the task's folder.
      skip_damaged: leave out pictures that cannot be decoded.

    Raises:
      UserError: a class without pictures, parts or names that contradict each other.
    """
    source = _sources(where, root)
    folders = {part: root / text.partition("/")[0] for part, text in source.items()}
    classes = {part: _subfolders(folder) for part, folder in folders.items()}
    every = [folder for part in classes.values() for folder in part]
    _check_names(where, sorted({folder.name for folder in every}))
    walk = Walk(entered={root, *folders.values()})
    paths = {
        folder: [path.relative_to(root).as_posix() for path in below]
        for folder, below in zip(every, walk.pictures(every), strict=True)
    }
    for part, folder in folders.items():
        if not classes[part]:
            raise UserError(
                f"{where} {folder} has no subfolders. Expected one for each class, with its "
                "pictures."
            )
    damaged = find_damaged(root, itertools.chain(*paths.values())) if skip_damaged else {}
    pictures: dict[str, dict[str, list[str]]] = {part: {} for part in classes}
    for part, subfolders in classes.items():
        for folder in subfolders:
            sound = [path for path in paths[folder] if path not in damaged]
            if not sound:
                raise _without_pictures(where, folder, walk)
            pictures[part][folder.name] = sound
    return Parts(pictures, source, damaged, walk.note())


def _sources(where: str, root: epath.Path) -> dict[str, str]:
    """Origin of the parts: 'train/' and so on, or '.' without such folders."""
    if not _labelled(root / TRAIN):
        classes = [folder.name for folder in _subfolders(root)]
        if classes and {name.lower() for name in classes} <= _LIKE_PARTS:
            raise UserError(
                f"{where} {root} has the folders {', '.join(classes)} alone, which look like parts "
                "of the data, not like classes. Name them train, val and test, each with a folder "
                "for each class in it."
            )
        return {TRAIN: "."}
    vals = [name for name in _VAL_FOLDERS if _labelled(root / name)]
    if len(vals) > 1:
        raise UserError(f"{where} {root} has both {vals[0]}/ and {vals[1]}/. Keep one of them.")
    source = {TRAIN: "train/"}
    if _labelled(root / TEST):
        source[TEST] = "test/"
        source |= {VAL: f"{vals[0]}/"} if vals else {}
    elif vals:  # pictures that nothing was trained on are for the final measure
        source[TEST] = f"{vals[0]}/, there being no labelled test/"
    return source


def _labelled(folder: epath.Path) -> bool:
    return folder.is_dir() and bool(_subfolders(folder))


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


def _without_pictures(where: str, folder: epath.Path, walk: Walk) -> UserError:
    """The error of a class folder without pictures."""
    name, why = printable_line(str(folder)), walk.left_out.get(str(folder))
    endings = f"no sound file whose name ends in {', '.join(sorted(decoder.suffixes()))}"
    reason = f"it is {why}" if why else endings
    return UserError(f"{where} the class folder {name} has no pictures: {reason}.")
