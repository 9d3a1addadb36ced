"""Does the server answer rightly, and stay small, while clients of all kinds trouble it?

    python -m benchmarks.serve --seconds 60 --tasks 50 [--out FILE.json]

Starts `fact-jax serve` with vit_mini and random factors on loopback. Good clients ask for every
task and check each number against `Predictor`. Meanwhile tasks are unloaded, loaded and replaced,
and bad clients send broken and oversized bodies, decompression bombs, unknown names and paths, and
hold connections open. SIGTERM ends the server while they all go on.
"""

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fact_jax
from benchmarks.common import option_parser, store
from benchmarks.robustness.serve_clients import (
    Bombs,
    Trial,
    bad,
    churn,
    good,
    greedy,
    slow,
    vanishing,
)
from benchmarks.robustness.serve_tasks import write_tasks
from fact_jax.sweep.versions import environment

Client = Callable[[Trial, random.Random], Awaitable[None]]
_PATIENCE = 2  # seconds that the server gives slow clients here
_READY = 600.0


class Started:
    """The server's process."""

    def __init__(self, folder: Path, cache: Path):
        self.report = folder / "opened.json"
        allowed = [folder / "tasks", sys.prefix, sys.base_prefix, cache, Path.cwd() / "fact_jax"]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.robustness.serve_target", self.report),
                os.pathsep.join(map(str, allowed)),
                *(f"--factors={folder / 'tasks'}", "--port=0", "--batch_size=16"),
                *(f"--head_timeout={_PATIENCE}", f"--body_timeout={_PATIENCE}"),
            ],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self.port = self._port()

    def _port(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"tasks at http://127\.0\.0\.1:(\d+)/", line):
                return int(found[1])
        raise SystemExit(f"The server has not started:\n{''.join(self.said)}")

    def megabytes(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1000 if found else 0.0

    def end(self) -> tuple[int, str, list[str]]:
        """The exit status, what the server said, and what it opened outside of its folder."""
        said, _ = self.process.communicate(timeout=120)
        return (
            self.process.returncode,
            "".join(self.said) + said,
            json.loads(self.report.read_text()),
        )


async def repeat(client: Client, trial: Trial, seed: int, until: float) -> None:
    """Runs a client again and again, for a little longer than the server lives."""
    rng = random.Random(seed)
    while time.monotonic() < until and not (trial.ended_at and trial.refused_at_end > 20):
        await client(trial, rng)
        if trial.ended_at:
            await asyncio.sleep(0.02)


async def load(trial: Trial, server: Started, seconds: float) -> list[float]:
    """All clients at once. Returns the server's memory in MB, twice a second."""
    clients: list[Client] = [*[good] * 6, churn, bad, Bombs(), greedy, *[slow] * 8, vanishing]
    until = time.monotonic() + seconds
    running = [
        asyncio.create_task(repeat(client, trial, seed, until + 5))
        for seed, client in enumerate(clients)
    ]
    memory = []
    while time.monotonic() < until:
        await asyncio.sleep(0.5)
        memory.append(server.megabytes())
    trial.ended_at = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*running)
    return memory


def thirds(memory: list[float]) -> dict[str, float]:
    """Medians of the memory at a third of the time and at its end, and the most of all."""
    tenth = max(1, len(memory) // 10)
    middle = len(memory) // 3
    return {
        "at_a_third": statistics.median(memory[middle : middle + tenth]),
        "at_the_end": statistics.median(memory[-tenth:]),
        "most": max(memory),
    }


def content_of(trial: Trial, memory: list[float], ended: tuple[int, str, list[str]]) -> Any:
    """The result."""
    status, said, outside = ended
    wrong = [*trial.wrong, *(["a traceback in the log"] if "Traceback" in said else [])]
    p50, p99 = np.percentile(trial.seconds, [50, 99]) * 1000
    return {
        "statuses": {kind: dict(counts) for kind, counts in sorted(trial.statuses.items())},
        "checked_answers": len(trial.seconds),
        "wrong": wrong[:20],
        "num_wrong": len(wrong),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "memory_mb": thirds(memory),
        "opened_outside": outside,
        "at_the_end": {
            "exit_status": status,
            "sent_before_answered_after": trial.answered_at_end,
            "came_too_late": trial.refused_at_end,
        },
        "environment": environment(),
    }


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tasks", type=int, default=50)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder = Path(name)
        truth = write_tasks(folder, a.tasks)
        names = list(truth.logits)
        server = Started(folder, Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "xla")))
        trial = Trial(server.port, folder, truth, names[-max(1, len(names) // 5) :])
        try:
            memory = asyncio.run(load(trial, server, a.seconds))
            ended = server.end()
        finally:
            server.process.kill()
    content = content_of(trial, memory, ended)
    table = Table("request", "answers", title=f"fact-jax {fact_jax.__version__} serve")
    for kind, counts in content["statuses"].items():
        table.add_row(kind, ", ".join(f"{n} x {status}" for status, n in sorted(counts.items())))
    Console().print(table)
    print(json.dumps({k: v for k, v in content.items() if k not in ("statuses", "environment")}))
    if "Traceback" in ended[1]:
        print(ended[1])
    store(a, content)


if __name__ == "__main__":
    main()
