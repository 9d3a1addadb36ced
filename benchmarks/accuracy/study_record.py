"""The study's record, a committed file that every run adds its cells to."""

import contextlib
import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.accuracy.study_plan import Item
from configs import study
from fact_jax.files.atomic import write_atomically
from fact_jax.sweep.result import Result
from fact_jax.sweep.settings import CONSISTENCY_NUMBERS

RECORD = Path("benchmarks/results/study.json")
_KEPT = (
    *("accuracy", "learning_rate", "selection", "grid_size", "num_factors", "num_head"),
    *("factor_file_bytes", "num_train", "num_test"),
)
Cell = dict[str, Any]
Key = tuple[str, str, str, int]


def read(path: Path) -> dict[str, Any]:
    """The record at `path`, or an empty one."""
    if path.exists():
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise SystemExit(
                f"{path} is no record ({error}). Take the committed one, `git checkout {path}`, or "
                "move it away to begin anew."
            ) from error
        return content
    return {"commands": [], "seconds": 0.0, "environments": [], "failures": [], "cells": []}


def key_of(cell: Cell) -> Key:
    """The place of a cell in the record."""
    return cell["part"], cell["arm"], cell["task"], cell["seed"]


def by_key(record: dict[str, Any], of: str = "cells") -> dict[Key, Cell]:
    """The cells, or the failures, by their places."""
    return {key_of(cell): cell for cell in record[of]}


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes the record whole or not at all, with one line for each cell."""
    lines = []
    for name, value in record.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f' "{name}": [\n{rows}\n ]' if value else f' "{name}": []')
        else:
            lines.append(f' "{name}": {json.dumps(value)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


@contextlib.contextmanager
def changed(path: Path) -> Iterator[dict[str, Any]]:
    """The record, to be changed: it is written at the end. Other processes wait meanwhile."""
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"fact-jax-record-{place}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = read(path)
        yield record
        write(path, record)


def _put(record: dict[str, Any], of: str, item: Item, cell: Cell | None) -> None:
    """Replaces a cell, or removes it."""
    cells = by_key(record, of)
    cells.pop(item.key, None)
    if cell is not None:
        cells[item.key] = cell
    record[of] = sorted(cells.values(), key=key_of)


def _names(item: Item) -> Cell:
    return {**dict(zip(("part", "arm", "task", "seed"), item.key, strict=True))}


def _forget(record: dict[str, Any], item: Item, digest: str) -> None:
    """Removes what an arm has on a task, if its first seed was made in another way before.

    So no mean has seeds of two settings, also where the study is stopped before it has all anew.
    """
    old = by_key(record).get(item.key)
    if item.seed == study.SEEDS[0] and old is not None and old["digest"] != digest:
        others = [cell for cell in record["cells"] if key_of(cell)[:3] != item.key[:3]]
        record["cells"] = others


def add_result(record: dict[str, Any], item: Item, result: Result, digest: str) -> None:
    """Adds a finished cell, and forgets an earlier failure of it."""
    environments = record["environments"]
    if result.environment not in environments:
        environments.append(result.environment)
    cell = {
        **_names(item),
        **{"method": item.method, "form": item.form},
        **{name: getattr(result, name) for name in _KEPT},
        **{
            name: value
            for name in CONSISTENCY_NUMBERS
            if (value := getattr(result, name)) is not None
        },
        "seconds": round(result.seconds["cell"], 1),
        "digest": digest,
        "environment": environments.index(result.environment),
    }
    _forget(record, item, digest)
    _put(record, "failures", item, None)
    _put(record, "cells", item, cell)
    record["seconds"] = round(sum(c["seconds"] for c in record["cells"]), 1)


def add_failure(record: dict[str, Any], item: Item, error: Exception, digest: str) -> None:
    """Adds a cell that failed, such as a training that diverged."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    _forget(record, item, digest)
    _put(record, "cells", item, None)
    _put(record, "failures", item, {**_names(item), "error": text, "digest": digest})
