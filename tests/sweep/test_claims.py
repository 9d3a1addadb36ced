"""Claims on cells, where several runs share a work directory."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with other.hold(["a", "b"]) as mine:
            if mine:
                break
    assert mine
    assert not list(folder.iterdir())


@pytest.mark.parametrize("make", [Claims, leasing])
def test_of_many_at_once_one_has_it(folder, make, monkeypatch):
    """Each begins with a look at a folder in which nobody has written yet."""
    inside, most, turns = [], [], []
    together, seen, read = threading.Barrier(4), threading.local(), claims._read

    def look(path):
        content = read(path)
        if not hasattr(seen, "first"):
            seen.first = content
            together.wait(timeout=20)
        return content

    monkeypatch.setattr(claims, "_read", look)

    def work():
        own, deadline = make(folder), time.monotonic() + 20
        while time.monotonic() < deadline:
            with own.hold(["a"]) as mine:
                if mine:
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.05)
                    inside.pop()
                    turns.append(1)
                    return
            time.sleep(0.01)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 4
    assert max(most) == 1


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


@pytest.mark.parametrize("make", [Claims, leasing])
def test_who_is_killed_lets_go(folder, make, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), make.__name__],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "True\n"
    monkeypatch.setattr(claims, "DEAD_AFTER", 1.5)
    other = make(folder)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # longer than a lease lasts without a beat
        with other.hold(["a"]) as mine:
            assert not mine
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    since = time.monotonic()
    while not mine and time.monotonic() < since + 10:
        with other.hold(["a"]) as mine:
            pass
        time.sleep(0.02)
    assert mine


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
    monkeypatch.setattr(claims, "BEAT", 0.5)
    with leasing(folder).hold(["a"]) as mine:
        assert mine
        (folder / "a").write_text("another 7")
        time.sleep(1.2)
        assert (folder / "a").read_text() == "another 7"
    assert (folder / "a").read_text() == "another 7"


def test_a_lease_that_goes_while_it_is_taken_is_not_held(folder, monkeypatch):
    own = leasing(folder)
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: (folder / "a").unlink())
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
    with Claims(folder).hold(["a"]) as mine:
        assert mine
        assert (folder / "a").read_text().endswith(" 0")
        with Claims(folder).hold(["a"]) as other:
            assert not other
