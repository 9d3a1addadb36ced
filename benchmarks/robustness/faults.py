"""Losses of sweeps by faults: kills, full or read-only disks, corrupt files, failing cells, clocks.

    python -m benchmarks.faults [--only kill,full] [--kills 20] [--seed 0] [--out FILE.json]

With --only the other trials that are in FILE.json stay there.

The command of a user (`python -m experiments.vtab`) runs in subprocesses on the sweep of
faults_bench.py. After each fault the same command runs again, until it is done. The
results are then compared with those of a sweep that nothing happened to: every number but times,
the factors' numbers and the pictures must be equal, and no result that was there may have been
written again.
"full" and "readonly" need root (mount, chattr) and are left out, by name, without.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.robustness.faults_bench import (  # noqa: E402,F401
    LIMIT,
    ROOT,
    SMALL,
    Bench,
    Done,
    again,
    damage_file,
    files,
    fill,
    get_config,
    has,
    last_words,
    patched,
    reached,
    results,
    said,
    stamps,
    steps,
    temporary,
    trained_otherwise,
    wait_for,
)
from benchmarks.robustness.faults_stop import stop


def _moment(b: Bench, workdir: Path, old: set[str], how: str) -> Callable[[], bool]:
    """Whether it is time to kill a command that is starting on a folder with these files."""
    until, many = time.monotonic() + b.random.uniform(0, 15), b.random.randrange(25)
    seen: set[str] = set()

    def now() -> bool:
        if how == "time":
            return time.monotonic() > until
        new = (p for p in files(workdir) if p not in old)
        seen.update(p for p in new if how == "event" or temporary(p))
        return len(seen) > (many if how == "event" else many // 4)

    return now


def kill(b: Bench) -> None:
    """SIGKILL at random moments: of the first seconds, while a file is being written, or after so
    many things have happened in the work directory."""
    b.expected()
    sent = writing = sweeps = 0
    lost: list[str] = []
    while sent < b.kills:
        workdir, before, last = b.workdir(), {}, None
        sweeps += 1
        while last is None:
            old = set(files(workdir))
            process = b.start(workdir)
            if sent >= b.kills:
                last = b.end(process)
            else:
                how = b.random.choice(["time", *["file", "event"] * 3])
                hit = wait_for(process, _moment(b, workdir, old, how))
                writing += hit and how == "file"
            if last is None and hit:
                process.kill()
                b.end(process)
                sent += 1
            elif last is None:
                last = b.end(process)
            after = stamps(workdir)
            lost += again(before, after)
            before = after
        lost += b.compare(workdir, last=last)
    how = f"{writing} of them while a file was being written; {sweeps} sweeps went on to the end"
    b.row("SIGKILL at random moments", sent, lost, how)


def _signalled(b: Bench, number: signal.Signals, status: int, text: str) -> None:
    lost: list[str] = []
    epochs = 0
    workdir, times = b.workdir(), 3
    for i in range(times):
        old, before = steps(workdir), stamps(workdir)
        process = b.start(workdir, *SMALL)
        if not wait_for(process, lambda n=i, old=old: len(steps(workdir) - old) > n % 2):
            lost.append("nothing was trained")
        there = reached(workdir)
        process.send_signal(number)
        done = b.end(process)
        lost += again(before, stamps(workdir))
        now = reached(workdir)
        epochs += sum(max(0, step - now[d]) for d, step in there.items() if d in now)
        if done.status != status or text not in done.text or "Traceback" in done.text:
            lost.append(f"status {done.status}, said {done.text[-200:]!r}")
    lost += [f"{epochs} finished epochs"] if epochs else []
    lost += b.compare(workdir, *SMALL, last=b.run(workdir, *SMALL))
    b.row(
        f"{number.name} while it trains",
        times,
        lost,
        f"status {status}, {text!r}",
    )


def term(b: Bench) -> None:
    _signalled(b, signal.SIGTERM, 143, "Terminated. Run the same command again")


def interrupt(b: Bench) -> None:
    _signalled(b, signal.SIGINT, 130, "Interrupted. Run the same command again")


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


def corrupt(b: Bench) -> None:
    """Files of every kind, damaged between two runs."""
    b.expected(*SMALL)
    half = b.workdir()
    process = b.start(half, *SMALL)
    seen = wait_for(
        process, lambda: has(half, "results/*.json")() and any("fact_tt" in p for p in steps(half))
    )
    process.kill()
    b.end(process)
    assert seen, "stopped too late for the trial"
    results_now = sorted(half.glob("results/*.json"))

    def trial(
        what: str, damage: Callable[[Path], int], *words: str, flags: tuple = (), **more: str
    ) -> None:
        workdir = b.workdir()
        shutil.copytree(half, workdir)
        times = damage(workdir)
        done = b.run(workdir, *SMALL, *flags, **more)
        lost = b.compare(workdir, *SMALL, last=done)
        flat = " ".join(done.text.split())
        lost += [f"nothing was said of {word!r}" for word in words if word not in flat]
        b.row(what, times, lost, f"status {done.status}" + (", said so" if words else ""))

    for how in ("cut short", "zeros", "garbage"):

        def results_and_records(workdir: Path, how=how) -> int:
            (workdir / "failures").mkdir(exist_ok=True)
            record = workdir / "failures" / f"{results_now[0].stem}.json"
            record.write_text(json.dumps({"when": "1", "error": "x"}))
            own = [workdir / "results" / results_now[0].name, record, workdir / "config.json"]
            own += [p for p in (workdir / "claims").iterdir()]
            for path in own:
                damage_file(b, path, how)
            return len(own)

        trial(f"results, records, claims: {how}", results_and_records, "cannot be read")
    for how in ("flipped bit", "cut short", "zeros", "garbage", "deleted"):

        def checkpoints(workdir: Path, how=how) -> int:
            own = [Path(p) for p in files(workdir / "checkpoints") if "/d/" in p]
            for path in own:
                path.unlink() if how == "deleted" else damage_file(b, path, how)
            return len(own)

        trial(f"checkpoints' data: {how}", checkpoints, "cannot be read")

    def metadata(workdir: Path) -> int:
        own = [Path(p) for p in files(workdir / "checkpoints") if p.endswith("METADATA")]
        for path in own:
            damage_file(b, path, "garbage")
        return len(own)

    def factors(workdir: Path) -> int:
        own = list(workdir.glob("factors/*"))
        for path in own:
            path.unlink()
        return len(own)

    trial("checkpoints' metadata: garbage", metadata, "cannot be read")
    trial("factor files deleted", factors, "cannot be read", "is missing")
    splits = b.folder / "splits"
    cached = f"--config.data_cache={splits}"
    b.run(b.workdir(), *SMALL, cached)

    def decoded(workdir: Path) -> int:
        """Each split's pixels, labels or record in turn."""
        own = [p for d in sorted(splits.iterdir()) for p in sorted(d.iterdir())][::2]
        for path in own:
            damage_file(b, path, "cut short")
        return len(own)

    trial("decoded splits: cut short", decoded, "is corrupt", flags=(cached,))
    for how in ("flipped bit", "cut short", "garbage"):
        cache = b.folder / f"xla-{how.replace(' ', '-')}"
        shutil.copytree(b.folder / "xla", cache)

        def compiled(workdir: Path, how=how, cache=cache) -> int:
            own = [p for p in cache.iterdir() if p.name.endswith("-cache")]
            for path in own:
                damage_file(b, path, how)
            return len(own)

        trial(f"compiled programs: {how}", compiled, JAX_COMPILATION_CACHE_DIR=str(cache))


def failing(b: Bench) -> None:
    """Cells that raise, that leave the finite numbers, and for which memory does not suffice."""
    cases = {
        "a cell that raises": ("noah", "--config.noah.limit=1", "No architecture"),
        "a cell that gives NaN": ("fact_tt", "--config.fact_tt.learning_rate=1e38", "became nan"),
    }
    for what, (method, setting, text) in cases.items():
        workdir = b.workdir()
        done = b.run(workdir, "--config.seeds=(0,1)", setting)
        theirs = {c: r for c, r in b.expected().items() if method not in c and c[-1] in "01"}
        mine = results(workdir)
        lost = [c for c in theirs if mine.get(c) != theirs[c]]
        lost += [] if mine.keys() == theirs.keys() else ["not the cells that were expected"]
        records = [json.loads(p.read_text()) for p in workdir.glob("failures/*.json")]
        lost += [] if len(records) == 2 else [f"{len(records)} records of 2 failures"]
        lost += [r["cell"] for r in records if text not in r["message"]]
        lost += said(done, "2 cells failed")
        command = [sys.executable, *shlex.split(records[0]["command"])[1:]]
        one = subprocess.run(
            command, cwd=ROOT, env=b.environment, capture_output=True, text=True, timeout=LIMIT
        )
        lost += [] if one.returncode == 2 and "1 cell failed" in one.stderr else [one.stderr[-300:]]
        b.row(what, 2, lost, "the others' results are equal; the record's command runs it again")
    workdir = b.workdir()
    done = b.run(workdir, *SMALL, patch="memory")
    mine, theirs = results(workdir), b.expected(*SMALL)
    lost = [] if done.status == 0 and mine.keys() == theirs.keys() else [done.text[-300:]]
    lost += [] if "going on with 1" in done.text else ["the stack was not halved"]
    both = [(mine[c]["losses"], theirs[c]["losses"]) for c in theirs]
    gap = max(abs(x - y) for pair in both for x, y in zip(*pair, strict=True))
    moved = max(abs(mine[c]["accuracy"] - theirs[c]["accuracy"]) for c in theirs)
    b.row(
        "out of memory in stacks of two (injected)",
        1,
        lost,
        f"went on one by one; losses differ by up to {gap:.1e}, accuracies by up to {moved:.1f} %",
    )


def together(b: Bench) -> None:
    """Several runs on one work directory, one of which is killed."""
    for number, patch, killed in ((2, "", False), (3, "", True), (2, "leases", True)):
        words = () if number == 3 else SMALL
        b.expected(*words)
        workdir = b.workdir()
        log = b.folder / f"{workdir.name}.trainings"
        runs = [
            b.start(workdir, *words, patch=patch or "counted", TRAININGS=str(log))
            for _ in range(number)
        ]
        seen: dict[str, set] = {}
        done_by: list[Done] = []
        while any(run.poll() is None for run in runs):
            for cell, stamp in stamps(workdir).items():
                seen.setdefault(cell, set()).add(stamp)
            if killed and steps(workdir):
                runs.pop(0).kill()
                killed = False
            time.sleep(0.02)
        done_by = [b.end(run) for run in runs]
        lost = [cell for cell, own in seen.items() if len(own) > 1]
        for done in done_by:
            lost += b.compare(workdir, *words, last=done)
        lost += trained_otherwise(log, killed=len(done_by) < number)
        tables = {done.text[done.text.find("Top-1") :] for done in done_by}
        lost += [] if len(tables) == 1 else ["their tables differ"]
        one = f"{number} runs at once" + (", by leases" if patch else "")
        more = ", one killed" if len(done_by) < number else ""
        b.row(
            one + more,
            1,
            lost,
            f"{len(seen)} cells, each trained and written once; the same table by each",
        )


def clock(b: Bench) -> None:
    """The time of day (Python's) set back and forward while a sweep runs."""
    workdir, offset = b.workdir(), b.folder / "offset"
    offset.write_text("0")
    process = b.start(
        workdir, *SMALL, "--config.tensorboard=True", patch="clock", OFFSET=str(offset)
    )
    jumps = 0
    for days in (-30, 400, -1, 0):
        before = len(list(files(workdir)))
        if wait_for(process, lambda n=before: len(list(files(workdir))) > n + 6):
            offset.write_text(str(86400 * days))
            jumps += 1
    lost = b.compare(workdir, *SMALL, last=b.end(process))
    for path in workdir.glob("results/*.json"):
        times = json.loads(path.read_text())["seconds"]
        lost += [f"{path.stem}: {k} took {v} s" for k, v in times.items() if not 0 <= v < LIMIT]
    b.row("the clock jumps by days and months", jumps, lost, "no time is negative or too long")


def lacking(name: str) -> str:
    """A sentence on what this trial needs and the machine lacks."""
    tool = {"full": "mount", "readonly": "chattr"}.get(name)
    if tool and (shutil.which(tool) is None or os.geteuid() != 0):
        return f"{tool}, as root"
    return ""


TRIALS = {
    f.__name__: f
    for f in (
        kill,
        stop,
        term,
        interrupt,
        full,
        readonly,
        corrupt,
        failing,
        together,
        clock,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"of {', '.join(TRIALS)}, commas between")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it works, kept; by default temporary")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    from fact_jax.sweep.versions import environment

    names = a.only.split(",") if a.only else list(TRIALS)
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(TRIALS)}")
    folder = a.folder or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench, found = Bench(folder.resolve(), a.seed, a.kills), {}
    for name in names:
        since, before = time.monotonic(), len(bench.rows)
        if missing := lacking(name):
            print(f"left out: {name}, which needs {missing}")
            continue
        TRIALS[name](bench)
        found[name] = {
            "command": f"python -m benchmarks.faults --only {name} --kills {a.kills} "
            f"--seed {a.seed}",
            "rows": bench.rows[before:],
            "seconds": time.monotonic() - since,
            "environment": environment(),
        }
    table = Table("tried", "times", "lost", "and then", title="Faults")
    for row in bench.rows:
        table.add_row(
            row["what"], str(row["times"]), "; ".join(row["lost"]) or "nothing", row["then"]
        )
    Console().print(table)
    if a.out:  # trials of an earlier command stay
        known = json.loads(a.out.read_text()) if a.out.exists() else {}
        content = {name: {**known, **found}.get(name, "left out") for name in TRIALS}
        a.out.write_text(json.dumps(content, indent=1) + "\n")
    if not a.folder:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(any(row["lost"] for row in bench.rows))


if __name__ == "__main__":
    main()
