"""Trials of faults.py: cells that fail, several runs at once, and a clock that jumps."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.robustness.faults_bench import LIMIT, ROOT, SMALL, Bench, Done, said, wait_for
from benchmarks.robustness.faults_files import files, results, stamps, steps


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


def trained_otherwise(log: Path, killed: bool) -> list[str]:
    """The trainings that several runs on one work directory did not do just once between them;
    the epochs of one that was killed are not in their log."""
    epochs: dict[str, int] = {}
    wanted = {}
    for line in log.read_text().splitlines():
        name, wanted[name], trained = json.loads(line)
        epochs[name] = epochs.get(name, 0) + trained
    return [
        f"{name}: {n} epochs were trained, not {wanted[name]}"
        for name, n in epochs.items()
        if n > wanted[name] or (n < wanted[name] and not killed)
    ]


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
        lost = [cell for cell, times in seen.items() if len(times) > 1]
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
