"""The files of a sweep that faults.py breaks: their state, their results, and damage to them."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

TIMES = ("seconds", "epochs_run", "environment")  # what may differ in a result


def results(workdir: Path) -> dict[str, Any]:
    """All of each result but times, and digests of the files that belong to it."""
    contents = {}
    for path in sorted(workdir.glob("results/*.json")):
        result = json.loads(path.read_text())
        content = {k: v for k, v in result.items() if k not in TIMES}
        content["pictures"] = digest((workdir / f"examples/{path.stem}.jpg").read_bytes())
        # Not the file as such: its metadata are in any order.
        with safe_open(workdir / f"factors/{path.stem}.safetensors", "np") as file:
            content["metadata"] = file.metadata()
            content["factors"] = {k: digest(file.get_tensor(k).tobytes()) for k in file.keys()}  # noqa: SIM118
        contents[path.stem] = content
    return contents


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stamps(workdir: Path) -> dict[str, tuple[int, int]]:
    paths = workdir.glob("results/*.json")
    return {p.stem: (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


def again(before: dict, after: dict) -> list[str]:
    return [f"{cell} was written again" for cell in before if after.get(cell) != before[cell]]


def files(workdir: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(workdir):
        yield from (f"{folder}/{name}" for name in (*folders, *names))


def temporary(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return "orbax-checkpoint-tmp" in path or (name.startswith(".") and name.count(".") > 2)


def steps(workdir: Path) -> set[str]:
    """The epochs' checkpoints that are whole."""
    paths = workdir.glob("checkpoints/*/*/*")
    return {str(p) for p in paths if p.name.isdigit()}


def reached(workdir: Path) -> dict[str, int]:
    """The last epoch of each training that is not finished."""
    last: dict[str, int] = {}
    for path in map(Path, steps(workdir)):
        key = str(path.parent)
        last[key] = max(last.get(key, 0), int(path.name))
    return last


def has(workdir: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(workdir.glob(pattern))


def fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                while True:
                    try:
                        file.write(b"\0" * size)
                    except OSError:
                        break
    except OSError:
        pass


def damage(rng: random.Random, paths: Iterable[Path], how: str) -> int:
    """Damages each file; returns how many there are."""
    damaged = list(paths)
    for path in damaged:
        if how == "deleted":
            path.unlink()
            continue
        content = bytearray(path.read_bytes())
        if how == "flipped bit" and content:
            content[len(content) // 2] ^= 1
        elif how == "cut short":
            del content[len(content) // 2 :]
        elif how == "zeros":
            content = bytearray(len(content))
        elif how == "garbage":
            content = bytearray(rng.randbytes(len(content)))
        path.write_bytes(content)
    return len(damaged)
