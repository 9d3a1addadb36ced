"""Ends of commands by signals. benchmarks/robustness/faults_signals.py stops whole sweeps."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from places import ROOT

from fact_jax.cli import stopping
from fact_jax.cli.stopping import Answer, Stopping, Terminated

TERM, INT = signal.SIGTERM, signal.SIGINT


class Ended(BaseException):
    """Stands for os._exit."""


@pytest.fixture
def stop(monkeypatch):
    """A Stopping whose signals are answered, but not sent: the tests call what handles them."""

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(stopping, "LEAVE", 0.1)
    monkeypatch.setattr(stopping, "MARGIN", 0.0)
    monkeypatch.setattr(stopping, "ECHO", 0.0)
    monkeypatch.setattr(stopping.os, "_exit", end)
    stop = Stopping()
    stop._answers = {INT: Answer(KeyboardInterrupt), TERM: Answer(Terminated, 0.2)}
    yield stop
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def watched(stop, *signals):
    """(status, seconds) of the thread's end after signals, each so many seconds after the last."""
    reader, writer = os.pipe()

    def send():
        for number, seconds in signals:
            time.sleep(seconds)
            os.write(writer, bytes([number]))

    threading.Thread(target=send, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(Ended) as ended:
        stop._watch(reader)
    return ended.value.args[0], time.monotonic() - began


def test_who_does_not_leave_is_ended(stop, capfd):
    status, seconds = watched(stop, (INT, 0))
    assert (status, seconds >= 0.1) == (130, True)
    assert capfd.readouterr().err == "\nInterrupted. Run the same command again to go on.\n"
    status, seconds = watched(stop, (TERM, 0))
    assert (status, seconds >= 0.2) == (143, True)


def test_the_cursor_is_shown_again(stop, capfd, monkeypatch):
    """The bars hide it, and who ends without them must show it."""
    monkeypatch.setattr(stopping.os, "isatty", lambda descriptor: True)
    watched(stop, (INT, 0))
    assert capfd.readouterr().out == "\x1b[?25h"


def test_a_second_signal_ends_at_once_but_not_its_echo(stop, monkeypatch):
    stop._answers[TERM] = Answer(Terminated, 60.0)
    status, seconds = watched(stop, (TERM, 0), (INT, 0.05))
    assert (status, seconds < 30) == (143, True)
    monkeypatch.setattr(stopping, "ECHO", 60.0)
    stop._answers[TERM] = Answer(Terminated, 0.2)
    assert watched(stop, (TERM, 0), (TERM, 0.01))[1] >= 0.2
    monkeypatch.setattr(stopping, "ECHO", 0.0)  # what other signals do is not ours
    assert watched(stop, (TERM, 0), (signal.SIGCHLD, 0.05))[1] >= 0.2


def test_goodbye_is_said_once(stop, monkeypatch, capfd):
    """Also if the time is over while the main thread says it."""

    def say(text, error):
        stop._say(INT)
        os.write(2, f"{text}\n".encode())

    monkeypatch.setattr(stopping, "say", say)
    with pytest.raises(Ended):
        stop.leave(INT)
    assert capfd.readouterr().err.count("Interrupted.") == 1


def test_a_job_is_queued_again_before_it_is_ended(stop):
    """Also where its main thread is in C++ and cannot; the launcher reads the status."""
    stop._answers[TERM] = Answer(Terminated, 0.1, lambda: sys.exit(144))
    assert watched(stop, (TERM, 0))[0] == 144


def test_what_is_over_is_not_ended(stop):
    reader, writer = os.pipe()
    stop._over = True
    os.write(writer, bytes([INT]))
    stop._watch(reader)


def test_the_main_thread_is_told_once(stop):
    with pytest.raises(KeyboardInterrupt):
        stop._handle(INT, None)
    stop._handle(INT, None)  # it is leaving its `with` blocks
    with pytest.raises(KeyboardInterrupt):  # unless it was lost in a finaliser
        stop.check()


def test_sigterm_waits_for_a_good_moment_or_half_of_its_time(stop):
    stop._answers[TERM] = Answer(Terminated, 60.0)
    stop._handle(TERM, None)
    with pytest.raises(Terminated):
        stop.check()
    stop.number, stop._answers[TERM] = None, Answer(Terminated, 0.4)

    def do_not_ask():
        stop._handle(TERM, None)
        time.sleep(60)

    with pytest.raises(Terminated):
        do_not_ask()
    stop.number = None
    stop.check()


@pytest.mark.parametrize(("code", "status"), [(None, 0), (-1, 255), (144, 144), ("error: no", 1)])
def test_statuses_are_pythons(code, status):
    assert stopping.exit_status(SystemExit(code)) == status


EARLY = """
import importlib.abc, os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)

sys.argv[0] = sys.argv[1]
sys.meta_path.insert(0, Finder())
from fact_jax.cli.main import main
"""


@pytest.mark.parametrize(
    ("program", "status", "quiet"),
    [
        ("bin/fact-jax", 130, True),
        ("mine.py", -INT, False),  # what a user's own program does is its own
    ],
)
def test_ctrl_c_while_jax_is_imported(program, status, quiet):
    out = subprocess.run(
        [sys.executable, "-c", EARLY, program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (out.returncode, out.stderr == "") == (status, quiet)


COMPILES = """
import os, signal, threading
from fact_jax.cli import process

signal.signal(signal.SIGINT, signal.default_int_handler)

def main():
    import jax
    import jax.numpy as jnp

    def program(x):
        for i in range(150):
            x = jnp.sin(x @ x) * jnp.cos(x + i) + jax.nn.softmax(x)
        return x

    lowered = jax.jit(program).lower(jnp.ones((64, 64)))
    print("compiling", end="", flush=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    lowered.compile()
    print("not reached")

process.run(main)
"""


def test_ctrl_c_while_a_program_is_compiled():
    """Python's own end would wait for the program, and then die of a segmentation fault."""
    out = subprocess.run(
        [sys.executable, "-c", COMPILES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # With all optimisations, the program takes seconds to compile.
        env=os.environ
        | {"JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        | {"XLA_FLAGS": ""},
    )
    assert (out.returncode, out.stdout) == (130, "compiling")
    assert out.stderr == "\nInterrupted. Run the same command again to go on.\n"
