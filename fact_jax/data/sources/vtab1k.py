"""The vtab-1k folder that the field passes around, as NOAH's get_vtab1k.py (e9c55f3) writes it.

    DATA_DIR/vtab-1k/cifar/train800.txt                val200.txt, train800val200.txt, test.txt
    DATA_DIR/vtab-1k/cifar/images/train800/000000.jpg  on a line "images/train800/000000.jpg 71"

NOAH's pictures are JPEG copies of quality 75 at the native size. Labels are the task's classes.
"""

import contextlib
import dataclasses
import io
from functools import partial

from etils import epath

from fact_jax.data.sources import Record, Source
from fact_jax.data.sources.list_files import check_images, read_lines
from fact_jax.data.sources.lists import ListsSource
from fact_jax.data.tasks import VTAB_STAGES, Task
from fact_jax.errors import UserError
from fact_jax.files.atomic import beside, unwritable
from fact_jax.images import decoder, pipeline
from fact_jax.text import printable_line

FORMAT = "vtab-1k"


def find_copy(task: Task, root: str) -> epath.Path | None:
    """The task's folder; None if there is none, or TFDS prepared records of the task."""
    data_dir = epath.Path(root).expanduser()
    versions = (task.versions, *task.substitutes)
    records = (data_dir.glob(f"{task.builder}/{v}/dataset_info.json") for v in versions)
    folder = data_dir / FORMAT / task.name
    if task.few_shot or task.offline or not folder.is_dir() or any(map(any, records)):
        return None
    return folder


def read_copy(task: Task, folder: epath.Path) -> ListsSource:
    """The pictures of a folder.

    Raises:
      UserError: lists that cannot be read, are of other sizes than the task's or share images,
        or pictures that are not there or not of one kind.
    """
    items = {split: read_lines(folder / f"{split}.txt") for split in VTAB_STAGES}
    source = check_images(task, FORMAT, folder, items, None)
    try:
        kinds = {decoder.jpeg_quality(source.images / part[0].path) for part in items.values()}
    except OSError as error:
        raise UserError(f"Task {task.name}: a picture in {folder} is damaged ({error}).") from error
    if len(kinds) > 1:
        raise UserError(
            f"Task {task.name}: the pictures in {folder} are of several kinds (JPEG of other "
            "qualities, or no JPEG). Take the published folder again."
        )
    (quality,) = kinds
    named = f"quality {quality}" if quality else "an unknown quality"
    note = "" if quality is None else f"JPEG copies of {named}, read as they are"
    return dataclasses.replace(source, note=note, stored_jpeg=quality)


def write_copy(task: Task, source: Source, folder: epath.Path) -> None:
    """Writes the folder from any source of the task, with PNG files of the pictures' own sizes.

    Raises:
      UserError: a picture is damaged, or the folder is there or cannot be written. Nothing of it is
        left then.
    """
    if folder.exists():
        raise UserError(
            f"{folder} has a copy of the task already. Delete it, or give another --out."
        )
    building = beside(folder)
    try:
        for split in VTAB_STAGES:
            (building / "images" / split).mkdir(parents=True)
            _write_split(building, split, source, task)
        building.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            building.rmtree(missing_ok=True)


def _write_split(folder: epath.Path, split: str, source: Source, task: Task) -> None:
    """Writes the pictures of a split and its list."""
    records = source.records(split, source.size(split))
    lines = []
    rows = pipeline.map_ahead(partial(_png, source, task), records, 64)
    for i, (content, label) in enumerate(rows):
        lines.append(f"images/{split}/{i:06}.png {label}\n")
        (folder / f"images/{split}/{i:06}.png").write_bytes(content)
    (folder / f"{split}.txt").write_text("".join(lines))


def _png(source: Source, task: Task, record: Record) -> tuple[bytes, int]:
    """A picture as a PNG file, and its class; UserError, which names it, if it is damaged."""
    buffer = io.BytesIO()
    try:
        with decoder.opened(record.image, binary=task.binary) as image:
            image.save(buffer, "PNG")
    except OSError as error:
        name = printable_line(record.name or "a picture")
        raise UserError(
            f"Task {task.name}: {name} in {source.place} cannot be decoded ({error}). "
            f"{source.remedy}"
        ) from error
    return buffer.getvalue(), record.label
