"""Claims on cells, where several runs share a work directory."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath
from places import ROOT

from fact_jax.sweep import claims
from fact_jax.sweep.claims import Claims


def leasing(folder) -> Claims:
    made = Claims(folder)
    made._leases = True
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    monkeypatch.setattr(claims, "DEAD_AFTER", 30.0)  # a loaded machine may forget a thread
    monkeypatch.setattr(claims, "SETTLE", 0.3)
    return epath.Path(tmp_path / "claims")


@pytest.mark.parametrize("make", [Claims, leasing])
def test_a_cell_has_one_owner_and_then_another(folder, make):
    one, other = make(folder), make(folder)
    with one.hold(["a", "b"]) as mine:
        assert mine
        with other.hold(["b", "c"]) as too:
            assert not too
        with other.hold(["c"]) as too:
            assert too
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with other.hold(["a", "b"]) as mine:
            if mine:
                break
    assert mine
    assert not list(folder.iterdir())


@pytest.mark.parametrize("make", [Claims, leasing])
def test_of_many_at_once_one_has_it(folder, make, monkeypatch):
    """Of leases: each looks before one writes, and has written before one looks again."""
    looked, written, answered = (threading.Barrier(4, timeout=60) for _ in range(3))
    thread, read, answers = threading.local(), claims._read, []

    def look(path):
        content = read(path)
        if getattr(thread, "begins", False):
            thread.begins = False
            looked.wait()
        return content

    monkeypatch.setattr(claims, "_read", look)
    settling = SimpleNamespace(sleep=lambda _: written.wait(), monotonic=time.monotonic)
    monkeypatch.setattr(claims, "time", settling)

    def work():
        thread.begins = True
        with make(folder).hold(["a"]) as mine:
            answers.append(mine)
            answered.wait()

    run_threads(work)
    assert sorted(answers) == [False, False, False, True]


def test_many_take_turns_with_locks(folder):
    inside, most = [], []

    def work():
        turns = 5
        while turns:
            with Claims(folder).hold(["a"]) as mine:
                if mine:
                    turns -= 1
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.01)
                    inside.pop()

    run_threads(work)
    assert most == [1] * 20


def run_threads(work):
    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)


OWNER = """
import sys, time
from etils import epath
from fact_jax.sweep import claims
claims.BEAT, claims.SETTLE = 0.05, 0.05
own = claims.Claims(epath.Path(sys.argv[1]))
own._leases = sys.argv[2] == "leasing" or None
with own.hold(["a"]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def owner(folder, make):
    """A process that holds "a"."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), make.__name__],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_who_is_killed_lets_go_of_a_lock(folder):
    with owner(folder, Claims) as process:
        with Claims(folder).hold(["a"]) as mine:
            assert not mine
        process.kill()
        process.wait()
        with Claims(folder).hold(["a"]) as mine:
            assert mine


def test_a_lease_lasts_while_its_number_changes(folder, monkeypatch):
    clock, seen, other = itertools.count(0.0, claims.DEAD_AFTER * 2 / 3), None, leasing(folder)
    with owner(folder, leasing) as process:
        monkeypatch.setattr(
            claims, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep)
        )
        for _ in range(4):
            while (number := (folder / "a").read_text()) in (seen, ""):
                time.sleep(0.01)
            seen = number
            with other.hold(["a"]) as mine:
                assert not mine
        process.kill()
        process.wait()
        (folder / "a").write_text("another 0")  # which the owner may have been about to write
        for expected in (False, False, True):  # new, two thirds of the time old, more than all
            with other.hold(["a"]) as mine:
                assert mine is expected


def test_the_clock_of_the_day_is_never_read(folder, monkeypatch):
    jumping = itertools.cycle([10**9, 10**8, 2 * 10**9])
    monkeypatch.setattr(time, "time", lambda: next(jumping))
    one, other = leasing(folder), leasing(folder)
    with one.hold(["a"]) as mine:
        assert mine
        for _ in range(30):
            with other.hold(["a"]) as too:
                assert not too
            time.sleep(0.02)


def test_an_empty_lease_is_somebodys(folder):
    """Its owner has opened it and is about to write."""
    folder.mkdir(parents=True)
    (folder / "a").write_text("")
    with leasing(folder).hold(["a"]) as mine:
        assert not mine


def test_a_lease_that_was_taken_is_neither_beaten_nor_removed(folder, monkeypatch):
    """The machine stood still for too long."""
    here, taken, seen = threading.current_thread(), threading.Event(), threading.Event()
    read = claims._read

    def look(path):
        if threading.current_thread() is here:
            return read(path)
        taken.wait(60)
        content = read(path)
        seen.set()
        return content

    monkeypatch.setattr(claims, "_read", look)
    with leasing(folder).hold(["a"]) as mine:
        assert mine
        (folder / "a").write_text("another 7")
        taken.set()
        assert seen.wait(60)
    assert (folder / "a").read_text() == "another 7"  # the thread that beats has ended, too


def test_a_lease_that_goes_while_it_is_taken_is_not_held(folder, monkeypatch):
    own = leasing(folder)
    gone = SimpleNamespace(sleep=lambda _: (folder / "a").unlink(), monotonic=time.monotonic)
    monkeypatch.setattr(claims, "time", gone)
    with own.hold(["a"]) as mine:
        assert not mine


def test_letting_go_hides_no_error(folder, monkeypatch):
    """The claim's file stays on a folder that has become read-only, and the reason is raised."""

    def refuse(self, missing_ok=False):
        raise PermissionError(30, "Read-only file system")

    def turn_read_only():
        with Claims(folder).hold(["a"]):
            monkeypatch.setattr(Path, "unlink", refuse)
            raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        turn_read_only()
    monkeypatch.undo()
    assert os.listdir(folder) == ["a"]
    with Claims(folder).hold(["a"]) as mine:
        assert mine


def test_where_nothing_locks_there_are_leases(folder, monkeypatch):
    import fcntl

    def none(descriptor, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(claims, "BEAT", 60.0)
    with Claims(folder).hold(["a"]) as mine:
        assert mine
        assert (folder / "a").read_text().endswith(" 0")
        with Claims(folder).hold(["a"]) as other:
            assert not other
