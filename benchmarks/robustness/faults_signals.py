"""Trials of faults.py: sweeps that are killed or told to end, at random moments."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.robustness.faults_bench import SMALL, Bench, Done, wait_for
from benchmarks.robustness.faults_files import again, files, reached, stamps, steps, temporary
from fact_jax.cli.stopping import GRACE, LEAVE

BAD = ("Traceback", "Segmentation", "Fatal", "core dumped", "terminate called", "Aborted")
SLOW = 3.0  # seconds that a busy machine may add to what is promised


class Stop(NamedTuple):
    """A signal, what the command was doing, the seconds until it ended, and its end.

    There is no signal if the command had ended before its moment came.
    """

    number: signal.Signals | None
    phase: str
    seconds: float
    done: Done

    def wrong(self) -> list[str]:
        """The broken promises of a stop, in sentences."""
        status, text = self.done
        ok = status == 0 or (self.number and status == 128 + self.number)
        wrong = [] if ok else [f"{self.phase}: status {status}, {text[-300:]!r}"]
        most = SLOW + (LEAVE if self.number == signal.SIGINT else GRACE)
        wrong += [f"{self.phase}: {self.seconds:.1f} s"] if self.seconds > most else []
        return wrong + [f"{self.phase}: {word} in {text[-300:]!r}" for word in BAD if word in text]


def moment(b: Bench, workdir: Path, old: set[str], how: str, seconds: float) -> Callable[[], bool]:
    """Whether the time has come for a signal to a command that starts on a folder with `old` files:
    after at most so many seconds ("time"), while a file is written ("file"), or after so many
    things have happened in the work directory ("event")."""
    until, many = time.monotonic() + b.random.uniform(0, seconds), b.random.randrange(25)
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
                hit = wait_for(process, moment(b, workdir, old, how, 15))
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
    b.row(f"{number.name} while it trains", times, lost, f"status {status}, {text!r}")


def term(b: Bench) -> None:
    _signalled(b, signal.SIGTERM, 143, "Terminated. Run the same command again")


def interrupt(b: Bench) -> None:
    _signalled(b, signal.SIGINT, 130, "Interrupted. Run the same command again")


def stop_once(b: Bench, workdir: Path, how: str, cold: bool) -> Stop:
    """Starts the command, and sends SIGINT or SIGTERM at a moment of this kind."""
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{workdir}-cold{time.monotonic_ns()}"} if cold else {}
    old = set(files(workdir))
    process = b.start(workdir, *SMALL, **cache)
    number = b.random.choice([signal.SIGINT, signal.SIGTERM])
    if not wait_for(process, moment(b, workdir, old, how, 30)):
        return Stop(None, "ended", 0.0, b.end(process))
    phase = phase_of(workdir, old, cold)
    process.send_signal(number)
    began = time.monotonic()
    done = b.end(process)
    return Stop(number, phase, time.monotonic() - began, done)


def phase_of(workdir: Path, old: set[str], cold: bool) -> str:
    """The work that a command does, by the new files in its work directory."""
    new = {Path(p).relative_to(workdir).parts[0] for p in files(workdir) if p not in old}
    if not new:
        return "while it imported"
    if not new & {"checkpoints", "results", "factors"} or not steps(workdir) - old:
        return "before its first checkpoint" + (", the cache empty" if cold else "")
    return "while it trained, evaluated or stored"


def stop(b: Bench) -> None:
    """SIGINT and SIGTERM at random moments, every other command with an empty cache of compiled
    programs, so that many come while the first one is compiled."""
    b.expected(*SMALL)
    lost: list[str] = []
    stops: list[Stop] = []
    sweeps, moments = 0, ["time", "file", "event", "event"]
    while len(stops) < b.kills:
        workdir, last = b.workdir(), None
        sweeps += 1
        while last is None:
            before = stamps(workdir)
            if len(stops) >= b.kills:
                last = b.run(workdir, *SMALL)
            else:
                cold = len(stops) % 2 == 0
                how = b.random.choice(moments[:1] if cold else moments)
                one = stop_once(b, workdir, how, cold)
                stops += [one] if one.number else []
                last = None if one.number and one.done.status else one.done
                lost += one.wrong()
            lost += again(before, stamps(workdir))
        lost += b.compare(workdir, *SMALL, last=last)
    longest = ", ".join(
        f"{n.name} {max((s.seconds for s in stops if s.number == n), default=0):.1f} s"
        for n in (signal.SIGINT, signal.SIGTERM)
    )
    phases = ", ".join(f"{n} {p}" for p, n in Counter(s.phase for s in stops).items())
    b.row(
        "SIGINT or SIGTERM at random moments",
        len(stops),
        lost,
        f"status 130 or 143, at the latest after {longest}; {phases}; {sweeps} sweeps went on to "
        "the end",
    )
    b.rows[-1]["signals"] = [
        {
            "signal": s.number.name if s.number else "",
            "came": s.phase,
            "seconds": s.seconds,
            "status": s.done.status,
        }
        for s in stops
    ]
