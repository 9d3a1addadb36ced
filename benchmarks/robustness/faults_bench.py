"""The sweep that faults.py breaks: its command, and its right outcome.

The command takes this file as its config: the bundled model, an offline task, a linear probe and
FacT-TT with grids and NOAH, 12 cells in stacks of two.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks.robustness.faults_files import results
from configs import quickstart

ROOT = Path(__file__).parents[2]
LIMIT = 900  # seconds that one command may take
FAR = "from benchmarks.robustness import faults_bench; faults_bench.patched({what!r})"


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.update(
        tasks="digits",
        methods="linear,fact_tt,noah",
        seeds=(0, 1, 2, 3),
        epochs=3,
        warmup_epochs=1,
        train_limit=96,
        eval_limit=60,
        batch_size=32,
        trials_per_device=2,
    )
    config.linear = ConfigDict({"learning_rates": (1e-2, 3e-2)})
    config.fact_tt = ConfigDict({"rank": 4, "scales": (0.1, 1.0), "learning_rate": 1e-2})
    config.noah = ConfigDict(
        {
            "widths": (1, 2),
            "supernet_epochs": 2,
            "supernet_learning_rate": 5e-3,
            "population": 4,
            "parents": 2,
            "mutations": 2,
            "crossovers": 1,
            "generations": 2,
            "limit": 100_000,
        }
    )
    return config


SMALL = ("--config.methods=linear,fact_tt", "--config.seeds=(0,1)")  # 4 cells in 2 groups


def patched(what: str) -> None:
    """Runs experiments.vtab, in the subprocess, with what no file or signal can bring about."""
    import runpy

    import jax

    from fact_jax.sweep import claims
    from fact_jax.sweep.trainer import Trainer

    train = Trainer.train

    def no_memory(self, runs, size, directory):
        if size > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory (injected)")
        return train(self, runs, size, directory)

    def counted(self, runs, size, directory):
        done = train(self, runs, size, directory)
        with Path(os.environ["TRAININGS"]).open("a") as file:
            for one in done:
                name = f"{one.run.cell.name}, {one.run.stage} {one.run.candidate}"
                row = [name, one.run.epochs, one.details["epochs_run"]]
                file.write(json.dumps(row) + "\n")
        return done

    if "TRAININGS" in os.environ:
        Trainer.train = counted
    if what == "memory":
        Trainer.train = no_memory
    if what == "clock":
        real, offset = time.time, Path(os.environ["OFFSET"])
        time.time = lambda: real() + float(offset.read_text() or 0)
    if what == "leases":
        claims._has_locks = lambda folder: False
        claims.BEAT, claims.DEAD_AFTER, claims.SETTLE = 0.5, 5.0, 0.3
    runpy.run_module("experiments.vtab", run_name="__main__", alter_sys=True)


class Done(NamedTuple):
    status: int
    text: str


class Bench:
    """Commands on work directories in one folder, and the results they should have."""

    def __init__(self, folder: Path, seed: int, kills: int):
        self.folder, self.kills = folder, kills
        self.random = random.Random(seed)
        self.rows: list[dict[str, Any]] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        self._expected: dict[tuple[str, ...], dict[str, Any]] = {}
        self._tables: dict[tuple[str, ...], str] = {}
        self._count = 0

    def workdir(self) -> Path:
        self._count += 1
        return self.folder / f"work{self._count}"

    def start(self, workdir: Path, *words: str, patch: str = "", **more: str) -> subprocess.Popen:
        how = ["-c", FAR.format(what=patch)] if patch else ["-m", "experiments.vtab"]
        command = [
            sys.executable,
            *how,
            "--config=benchmarks/robustness/faults_bench.py",
            f"--workdir={workdir}",
        ]
        log = (self.folder / f"{workdir.name}-{time.monotonic_ns()}.log").open("w+")
        process = subprocess.Popen(
            [*command, *words],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**self.environment, **more},
        )
        process.log = log  # type: ignore[attr-defined]
        return process

    def end(self, process: subprocess.Popen) -> Done:
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log = process.log  # type: ignore[attr-defined]
        log.seek(0)
        return Done(process.returncode, log.read())

    def run(self, workdir: Path, *words: str, patch: str = "", **more: str) -> Done:
        return self.end(self.start(workdir, *words, patch=patch, **more))

    def expected(self, *words: str) -> dict[str, Any]:
        """The results of a sweep that nothing happens to."""
        if words not in self._expected:
            workdir = self.workdir()
            done = self.run(workdir, *words)
            if done.status:
                raise SystemExit(f"The sweep fails without any fault:\n{done.text}")
            self._expected[words] = results(workdir)
            self._tables[words] = (workdir / "results.csv").read_text()
        return self._expected[words]

    def row(self, what: str, times: int, lost: list[str], then: str) -> None:
        self.rows.append({"what": what, "times": times, "lost": lost, "then": then})
        print(f"{what}: {times} times, lost: {', '.join(lost) or 'nothing'}; {then}", flush=True)

    def compare(self, workdir: Path, *words: str, last: Done | None = None) -> list[str]:
        """The faults of the outcome, in sentences."""
        lost = [f"status {last.status}: {last.text[-300:]}"] if last and last.status else []
        mine, theirs = results(workdir), self.expected(*words)
        lost += [f"{cell} is missing" for cell in sorted(theirs.keys() - mine.keys())]
        for cell in sorted(theirs.keys() & mine.keys()):
            keys = {*mine[cell], *theirs[cell]}
            lost += [
                f"{cell}: {key} differs"
                for key in sorted(keys)
                if mine[cell].get(key) != theirs[cell].get(key)
            ]
        if last and not last.status:
            table = (workdir / "results.csv").read_text()
            lost += [] if table == self._tables[words] else ["results.csv differs"]
        return lost


def wait_for(process: subprocess.Popen, seen: Callable[[], bool]) -> bool:
    """Waits until it is so; False if the command ended before."""
    while process.poll() is None:
        if seen():
            return True
        time.sleep(0.002)
    return False


def said(done: Done, words: str) -> list[str]:
    """Nothing if the last paragraph says this; Orbax's threads may have printed before it."""
    last = " ".join(done.text[done.text.rfind("error: ") :].split())
    if done.status == 2 and words in last and "Traceback" not in last:
        return []
    return [f"status {done.status}, said {done.text[-300:]!r}"]


def last_words(done: Done) -> str:
    """The last paragraph that a command printed."""
    text = " ".join(done.text[done.text.rfind("error: ") :].split())
    return f"status {done.status}, {text[:160]}"
