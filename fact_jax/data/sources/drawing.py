"""Parts of the sources of one's own pictures: their place, parts that are drawn, fingerprints."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial

import numpy as np
from etils import epath

from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.lists import REMEDY, Item
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.images import decoder, pipeline
from fact_jax.text import first_ten

TRAIN, VAL, TEST = "train", "val", "test"
DRAWN_SHARE = 5  # one image in five of each class is drawn, at least one where there are two
_SEED = 2**31  # of all draws


def own_place(task: Task, settings: DataSettings, what: str) -> epath.Path:
    """The path of a task's folder or file in the data directory, which may not be there.

    Raises:
      UserError: mock data are asked for, which `what` does not have, or no data directory is given.
    """
    where = f"Task {task.name}:"
    if settings.mock:
        raise UserError(
            f"{where} config.mock_data is True, but {what} has no mock data. Set it to False."
        )
    if not settings.data_dir:
        raise UserError(
            f"{where} config.data_dir (--data_dir) is empty. It must be the folder in which "
            f"{task.folder!r} lies."
        )
    return epath.Path(settings.data_dir).expanduser() / task.folder


def complete_parts(
    where: str, parts: dict[str, list[Item]], num_classes: int
) -> tuple[dict[str, list[Item]], list[str]]:
    """The parts 'train', 'val' and 'test', each mixed; missing ones are drawn from train.

    Args:
      where: how messages begin.
      parts: the items of 'train', and of 'val' and 'test' where they are given.
      num_classes: number of classes of train.

    Returns:
      The parts, and the names of those that were drawn.

    Raises:
      UserError: there are too few pictures to draw from.
    """
    parts, drawn = dict(parts), []
    for part, text in ((TEST, "for test"), (VAL, "to choose settings on")):
        if part not in parts:
            parts[TRAIN], parts[part] = _hold_out(parts[TRAIN], num_classes)
            drawn.append(part)
        if any(item.labels for item in parts[TRAIN]) and not any(i.labels for i in parts[part]):
            raise UserError(
                f"{where}: no picture {text} has a label, so that nothing can be measured. Add "
                "labelled pictures, or say in a column `split` which part each is in."
            )
        if not parts[part] or not parts[TRAIN]:
            raise UserError(
                f"{where} has too few pictures to keep some {text}: one of each class. Add "
                "pictures."
            )
    # A limit takes the first ones, which should not be of one class.
    mixed = {
        part: [parts[part][i] for i in np.random.default_rng(_SEED).permutation(len(parts[part]))]
        for part in (TRAIN, VAL, TEST)
    }
    return mixed, drawn


def draw_note(drawn: list[str]) -> str:
    """How the parts were drawn, in words for the record of the data."""
    return f" (default_rng({_SEED}) drew {' and '.join(drawn)} from train)" if drawn else ""


def _hold_out(items: list[Item], num_classes: int) -> tuple[list[Item], list[Item]]:
    """Splits the items into the remaining ones and one in `DRAWN_SHARE` of each class.

    Items with several labels have no class of their own: some with a label and some without any are
    drawn.
    """
    rng = np.random.default_rng(_SEED)
    several = any(item.labels is not None for item in items)
    labels = np.array([bool(item.labels) if several else item.label for item in items])
    held: set[int] = set()
    for label in range(2 if several else num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held.update(rows[: max(len(rows) // DRAWN_SHARE, int(len(rows) > 1))].tolist())
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )


def content_fingerprints(
    where: str, root: epath.Path, items: Mapping[str, list[Item]]
) -> dict[str, str]:
    """Fingerprint of each part: paths, classes and contents of its pictures.

    Raises:
      UserError: pictures cannot be read.
    """
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
    label = item.label if item.labels is None else item.labels
    return os.fsencode(f"{item.path} {label} {content}\n"), ""
