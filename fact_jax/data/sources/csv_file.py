"""A data set of one's own: a CSV file that names pictures and their labels.

    DATA_DIR/flowers.csv          path,label           one class a picture
                                  photos/1.jpg,daisy
    DATA_DIR/scenes.csv           path,labels          any number of labels, with | between them
                                  photos/2.jpg,beach|sunset

It is the task 'csv_flowers' (and 'csv_flowers_4shot'). Paths begin at the folder of the file. A
third column `split` may say train, val or test; missing parts are drawn as those of folders. Other
columns are not looked at. Classes are numbered in the order of their names.
"""

import csv
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from fact_jax.data.settings import DataSettings
from fact_jax.data.sources.drawing import (
    DRAWN_SHARE,
    TEST,
    TRAIN,
    VAL,
    complete_parts,
    content_fingerprints,
    draw_note,
    own_place,
)
from fact_jax.data.sources.list_files import make_item, quoted, read_text, same_file
from fact_jax.data.sources.lists import Item, ListsSource, find_damaged
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.text import first_ten, printable_line

SEPARATOR = "|"
_LONGEST_NAME = 200
_MOST_LABELS = 10_000


class _Row(NamedTuple):
    """A row of the file: its line, the path, the names of its labels, and its part."""

    line: int
    path: str
    names: tuple[str, ...]
    part: str


def read_csv(task: Task, settings: DataSettings) -> ListsSource:
    """The pictures of the task's file as lists 'train', 'val' and 'test', the classes mixed.

    Raises:
      UserError: there is no such file, or a row that makes no sense, or pictures are missing, or
        there are too few of them.
    """
    path = _path(task, settings)
    where = f"Task {task.name}: {path}"
    rows, several = _rows(where, path)
    damaged = find_damaged(path.parent, (r.path for r in rows)) if settings.skip_damaged else {}
    rows = [row for row in rows if row.path not in damaged]
    names = sorted({name for row in rows for name in row.names if row.part == TRAIN})
    _check_names(where, rows, names, several)
    numbers = {name: i for i, name in enumerate(names)}
    parts: dict[str, list[Item]] = {TRAIN: []}
    for row in rows:
        labels = tuple(sorted({numbers[name] for name in row.names}))
        item = Item(row.path, labels=labels) if several else Item(row.path, labels[0])
        parts.setdefault(row.part, []).append(item)
    rest = "all" if len(parts) == 1 else "column split"
    parts, drawn = complete_parts(where, parts, len(names))
    share = f"one image in {DRAWN_SHARE}" + ("" if several else " of each class")
    sources = {part: share if part in drawn else rest for part in (TRAIN, VAL, TEST)}
    note = "; ".join(f"{part}: {source}" for part, source in sources.items())
    return ListsSource(
        task=task,
        kind="csv",
        folder=path,
        images=path.parent,
        items=parts,
        class_names=[printable_line(name) for name in names],
        fingerprints=content_fingerprints(where, path.parent, parts),
        note=note + draw_note(drawn),
        left_out=damaged,
        multi_label=several,
    )


def _path(task: Task, settings: DataSettings) -> epath.Path:
    """The task's file; UserError if there is none."""
    path = own_place(task, settings, "a CSV file")
    if not path.exists():
        raise UserError(
            f"Task {task.name}: {path} is not there. Expected a CSV file with the header "
            "path,label (or path,labels for several labels a picture)."
        )
    return path


def _rows(where: str, path: epath.Path) -> tuple[list[_Row], bool]:
    """The rows of the file, and whether a picture has any number of labels."""
    lines = csv.reader(read_text(path).splitlines(), strict=True)
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        column, several = _columns(where, header)
        rows = list(_parsed(where, lines, header, column, several))
    except csv.Error as error:
        raise UserError(f"{where}, line {lines.line_num}: no CSV ({error}).") from error
    if not rows:
        raise UserError(f"{where} names no picture, only the header.")
    first: dict[str, int] = {}
    folders: dict[str, str] = {}
    for row in rows:
        file = same_file(path.parent, row.path, folders)
        if (line := first.setdefault(file, row.line)) != row.line:
            raise UserError(
                f"{where} names {quoted(row.path)} twice, in lines {line} and {row.line}. Keep one "
                f"of them; with a column `labels`, put {SEPARATOR} between labels of one picture."
            )
    if missing := [row.path for row in rows if not (path.parent / row.path).exists()]:
        raise UserError(
            f"{where} names {len(rows)} pictures; {len(missing)} of them are not in {path.parent}: "
            f"{first_ten(missing)}. Paths begin at the folder of the file."
        )
    return rows, several


def _columns(where: str, header: list[str]) -> tuple[str, bool]:
    """The column of labels, and whether it may hold several."""
    labels = [name for name in ("label", "labels") if name in header]
    if "path" not in header or len(labels) != 1 or len(set(header)) < len(header):
        raise UserError(
            f"{where} begins with {quoted(','.join(header))}; expected a header with the columns "
            "path and label, or path and labels for several labels a picture, with commas between "
            "them, each once."
        )
    return labels[0], labels[0] == "labels"


def _parsed(
    where: str, lines: Iterator[list[str]], header: list[str], column: str, several: bool
) -> Iterator[_Row]:
    for fields in lines:
        if not any(field.strip() for field in fields):
            continue
        line = getattr(lines, "line_num", 0)
        here = f"{where}, line {line}:"
        if len(fields) != len(header):
            raise UserError(f"{here} {len(fields)} fields, expected the header's {len(header)}.")
        row = dict(zip(header, map(str.strip, fields), strict=True))
        path = make_item(row["path"], 0, f"{here} {quoted(row['path'])} is no path").path
        names = row[column].split(SEPARATOR) if several else [row[column]]
        names = [name.strip() for name in names if name.strip()]
        if not names and not several:
            raise UserError(f"{here} {quoted(path)} has no label.")
        if too_long := [name for name in names if len(name) > _LONGEST_NAME]:
            raise UserError(
                f"{here} the label {quoted(too_long[0])} has over {_LONGEST_NAME} characters."
            )
        part = row.get("split", "").lower() or TRAIN
        part = VAL if part in ("valid", "validation") else part
        if part not in (TRAIN, VAL, TEST):
            raise UserError(f"{here} split is {quoted(part)}; expected train, val or test.")
        yield _Row(line, path, tuple(names), part)


def _check_names(where: str, rows: list[_Row], names: list[str], several: bool) -> None:
    """UserError if there are too few labels, or too many, or some that train lacks."""
    for row in rows:
        if unknown := set(row.names) - set(names):
            raise UserError(
                f"{where}, line {row.line}: the label {quoted(min(unknown))} is in {row.part}, but "
                "no picture of train has it."
            )
    if len(names) < (1 if several else 2):
        raise UserError(
            f"{where} has {len(names)} different labels in train; expected at least "
            f"{1 if several else 2}."
        )
    if len(names) > _MOST_LABELS:
        raise UserError(
            f"{where} has {len(names):,} different labels, more than {_MOST_LABELS:,}. Are they "
            "classes?"
        )
