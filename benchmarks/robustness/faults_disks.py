"""Trials of faults.py: disks that are full or read-only, and files that are damaged."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.robustness.faults_bench import SMALL, Bench, Done, last_words, said, wait_for
from benchmarks.robustness.faults_files import again, damage, files, fill, has, stamps, steps


def full(b: Bench) -> None:
    """A disk that fills at different moments, and has space again."""
    moments = {
        "before the start": None,
        "while a checkpoint is written": "checkpoints/*/*/*",
        "when the first pictures are there": "examples/*.jpg",
        "when the first factors are there": "factors/*.safetensors",
    }
    for name, pattern in moments.items():
        disk = b.folder / "disk"
        disk.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
        try:
            workdir, filler = disk / "work", disk / "filler"
            if pattern is None:
                fill(filler)
            process = b.start(workdir, *SMALL)
            if pattern:
                wait_for(process, has(workdir, pattern))
                fill(filler)
            done = b.end(process)
            lost, before = said(done, "is full"), stamps(workdir)
            filler.unlink()
            lost += b.compare(workdir, *SMALL, last=b.run(workdir, *SMALL))
            b.row(f"disk full {name}", 1, lost + again(before, stamps(workdir)), last_words(done))
        finally:
            subprocess.run(["umount", disk], check=True)


def readonly(b: Bench) -> None:
    """A work directory that is read-only from the start, or becomes so."""
    for name, pattern in (("from the start", None), ("in the middle", "checkpoints/*/*/*")):
        workdir = b.workdir()
        workdir.mkdir()
        if pattern is None:
            subprocess.run(["chattr", "+i", workdir], check=True)
        process = b.start(workdir, *SMALL)
        if pattern:
            wait_for(process, has(workdir, pattern))
            subprocess.run(["chattr", "-R", "-f", "+i", workdir])  # files may go meanwhile
        done = b.end(process)
        subprocess.run(["chattr", "-R", "-f", "-i", workdir])
        lost, before = said(done, "cannot be written"), stamps(workdir)
        lost += b.compare(workdir, *SMALL, last=b.run(workdir, *SMALL))
        b.row(f"read-only {name}", 1, lost + again(before, stamps(workdir)), last_words(done))


class Damage(NamedTuple):
    """Files of a work directory, the ways to damage them, and what must be said then."""

    what: str
    paths: Callable[[Path], Iterable[Path]]
    ways: tuple[str, ...]
    words: tuple[str, ...] = ("cannot be read",)


def records(workdir: Path) -> list[Path]:
    """A result, a record of a failure (made here), the config, and the claims."""
    result = min(workdir.glob("results/*.json"))
    failure = workdir / "failures" / result.name
    failure.parent.mkdir(exist_ok=True)
    failure.write_text(json.dumps({"when": "1", "error": "x"}))
    return [result, failure, workdir / "config.json", *(workdir / "claims").iterdir()]


def checkpoints(workdir: Path, part: str) -> list[Path]:
    """The files of all checkpoints with this in their path."""
    return [Path(p) for p in files(workdir / "checkpoints") if part in p and Path(p).is_file()]


DAMAGES = (
    Damage("results, records, claims", records, ("cut short", "zeros", "garbage")),
    Damage(
        "checkpoints' data",
        lambda workdir: checkpoints(workdir, "/d/"),
        ("flipped bit", "cut short", "zeros", "garbage", "deleted"),
    ),
    Damage("checkpoints' metadata", lambda workdir: checkpoints(workdir, "METADATA"), ("garbage",)),
    Damage(
        "factor files",
        lambda workdir: workdir.glob("factors/*"),
        ("deleted",),
        ("cannot be read", "is missing"),
    ),
)


def half_done(b: Bench) -> Path:
    """A sweep that was killed with a result, and with checkpoints of FacT-TT."""
    b.expected(*SMALL)
    half = b.workdir()
    process = b.start(half, *SMALL)
    seen = wait_for(
        process, lambda: has(half, "results/*.json")() and any("fact_tt" in p for p in steps(half))
    )
    process.kill()
    b.end(process)
    if not seen:
        raise SystemExit("The sweep was stopped too late for the trial.")
    return half


def told(b: Bench, what: str, times: int, workdir: Path, done: Done, *words: str) -> None:
    """Adds the row of a command that went on after damage, and had to say these words."""
    lost, text = b.compare(workdir, *SMALL, last=done), " ".join(done.text.split())
    lost += [f"nothing was said of {word!r}" for word in words if word not in text]
    b.row(what, times, lost, f"status {done.status}" + (", said so" if words else ""))


def corrupt(b: Bench) -> None:
    """Files of every kind, damaged between two runs."""
    half = half_done(b)
    for what, paths, ways, words in DAMAGES:
        for way in ways:
            workdir = Path(shutil.copytree(half, b.workdir()))
            times = damage(b.random, paths(workdir), way)
            done = b.run(workdir, *SMALL)
            told(b, f"{what}: {way}", times, workdir, done, *words)
    splits = b.folder / "splits"
    cached = f"--config.data_cache={splits}"
    b.run(b.workdir(), *SMALL, cached)
    # Each split's pixels, labels or record in turn.
    decoded = [p for d in sorted(splits.iterdir()) for p in sorted(d.iterdir())][::2]
    times = damage(b.random, decoded, "cut short")
    workdir = Path(shutil.copytree(half, b.workdir()))
    done = b.run(workdir, *SMALL, cached)
    told(b, "decoded splits: cut short", times, workdir, done, "is corrupt")
    for way in ("flipped bit", "cut short", "garbage"):
        cache = Path(shutil.copytree(b.folder / "xla", b.folder / f"xla-{way.replace(' ', '-')}"))
        times = damage(b.random, cache.glob("*-cache"), way)
        workdir = Path(shutil.copytree(half, b.workdir()))
        done = b.run(workdir, *SMALL, JAX_COMPILATION_CACHE_DIR=str(cache))
        told(b, f"compiled programs: {way}", times, workdir, done)
