"""Outputs of a prediction: files for programs, a table for people."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from rich.table import Table
from rich.text import Text

from fact_jax.errors import UserError
from fact_jax.files.atomic import beside, unwritable
from fact_jax.files.guards import MAX_METADATA, absence
from fact_jax.text import csv_field, printable_line
from fact_jax.training.metrics import probabilities

OUTPUT_SUFFIXES = (".npy", ".csv")


def read_class_names(path: Path, num_classes: int) -> list[str]:
    """Reads one name a line. Raises UserError unless the file has one for each class."""
    try:
        if not path.is_file():  # a device might never end
            raise OSError(f"it {absence(path)}")
        with path.open(encoding="utf-8-sig") as file:
            names = file.read(MAX_METADATA).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Class names {path} cannot be read as text ({error}).") from error
    if len(names) != num_classes:
        raise UserError(
            f"Class names {path} has {len(names)} lines; the factors have {num_classes} classes. "
            "Write one name a line, in the order of the labels."
        )
    return names


def logits_bytes(
    suffix: str, logits: np.ndarray, rows: Sequence[str], classes: Sequence[str]
) -> bytes:
    """The content of a file of logits [n, c]: `.npy`, or `.csv` with a column per class."""
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, logits)
        return buffer.getvalue()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *(csv_field(printable_line(name)) for name in classes)])
    for row, values in zip(rows, logits, strict=True):
        # Nine digits give float32 exactly.
        writer.writerow([csv_field(printable_line(row)), *(f"{value:.9g}" for value in values)])
    return text.getvalue().encode()  # `printable_line` has escaped what UTF-8 cannot encode


def prepare_output(path: str) -> None:
    """Makes the folder of an output file, before the long work for it starts.

    Raises UserError if `write_atomically` could not write there.
    """
    target = epath.Path(path)
    if target.is_dir():
        raise UserError(f"{path} is a folder. Give --out the name of a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = beside(target)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def check_not_input(out: str, **inputs: str | None) -> None:
    """Raises UserError if `out` is an input file, also by a link, or a file of an input folder.

    Args:
      out: the output file.
      **inputs: files or folders by the names of their flags; other values are harmless.
    """
    for flag, value in inputs.items():
        path = Path(value or "").expanduser()
        files = [path]
        if value and path.is_dir():
            files = [file for file in path.iterdir() if file.suffix not in OUTPUT_SUFFIXES]
        if any(os.path.realpath(out) == os.path.realpath(f) or _same(out, f) for f in files):
            raise UserError(
                f"--out {out} is a file of --{flag}, which it would replace. Give another --out."
            )


def _same(a: str | Path, b: str | Path) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def top_table(
    logits: np.ndarray,
    rows: Sequence[str],
    classes: Sequence[str],
    topk: int,
    first: str,
    multi_label: bool = False,
) -> Table:
    """The most probable classes of each row; rows without finite logits say so."""
    table = Table(first, "class", "probability")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    table.columns[2].justify = "right"
    for name, values in zip(rows, logits, strict=True):
        if not np.isfinite(values).all():
            table.add_row(_shown(name), Text("unreadable", "red"), "-", end_section=True)
            continue
        p = probabilities(values[None], multi_label)[0]
        order = np.argsort(-values, kind="stable")[:topk]
        for place, i in enumerate(order):
            label = _shown(name) if place == 0 else ""
            last = place == len(order) - 1
            table.add_row(label, _shown(classes[i]), f"{100 * p[i]:.1f} %", end_section=last)
    return table


def _shown(name: str) -> Text:
    """A name with control characters and broken encodings escaped."""
    return Text(printable_line(name))
