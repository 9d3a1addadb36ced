"""Work directories that survive stops, damage and full disks."""

import errno
import json
import os

import pytest
from etils import epath
from report_results import result

from fact_jax.sweep.evolution import Space, check_state
from fact_jax.sweep.result import Result
from fact_jax.sweep.store import Store, Unwritable
from fact_jax.tuning import NOAH


@pytest.fixture
def noted(tmp_path):
    notes = []
    return Store(tmp_path, notes.append), notes


def test_a_write_is_on_disk_before_it_is_seen_and_so_is_its_name(tmp_path, monkeypatch):
    """A power cut leaves the old file or the new one: content, fsync, rename, fsync."""
    store, calls = Store(tmp_path), []
    real = os.fsync

    def fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        size = os.fstat(descriptor).st_size if os.path.isfile(path) else None
        calls.append(("fsync", os.path.basename(path), size, (tmp_path / "results/a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.write(store.workdir / "results" / "a", b"12345")
    (file, folder) = calls
    assert file[1].startswith(".a.")
    assert file[2:] == (5, False)  # all of it, and not yet under its name
    assert folder == ("fsync", "results", None, True)
    assert (tmp_path / "results/a").read_bytes() == b"12345"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_without_fsync_of_folders_will_do(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = Store(tmp_path)
    store.write(store.workdir / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "cannot be written")],
)
def test_what_cannot_be_written_is_said_and_leaves_what_was_there(
    tmp_path, monkeypatch, number, words
):
    store = Store(tmp_path)
    store.write_json(store.workdir / "a.json", {"x": 1})

    def broken(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(Unwritable, match=f"{tmp_path} {words}.*run the same command again"):
        store.write_json(store.workdir / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert not list(tmp_path.glob(".a.json*"))
    with pytest.raises(Unwritable):
        store.check()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, b"\xff\xfe", b"[]", b"[" * 100_000, json.dumps(result()).encode()],
)
def test_what_cannot_be_read_is_set_aside_and_kept(noted, content):
    """Also the result of another cell."""
    store, notes = noted
    path = store.result_path("a")
    path.write_bytes(content)
    assert store.read_result("a") is None
    (aside,) = path.parent.glob("a.json.unreadable-*")
    assert aside.read_bytes() == content
    assert not path.exists()
    assert f"{path} cannot be read" in notes[0]
    assert f"moved to {aside.name}" in notes[0]


def test_what_is_only_looked_at_stays_where_it_is(tmp_path):
    notes: list[str] = []
    path = Store(tmp_path).result_path("a")
    path.write_text("{")
    store = Store(tmp_path, notes.append, create=False)
    assert store.read_result("a") is None
    assert path.exists()
    assert "cannot be read" in notes[0]
    assert "moved" not in notes[0]
    Store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("left", [None, b"", b"1234"])
def test_a_result_without_its_factors_is_made_anew(noted, left):
    store, notes = noted
    store.write(store.factors_path("a"), b"12345")
    content = {**result(), "cell": "a", "factor_file_bytes": 5}
    store.write_json(store.result_path("a"), content)
    assert store.read_result("a") == Result(**content)
    store.factors_path("a").unlink()
    if left is not None:
        store.factors_path("a").write_bytes(left)
    assert store.read_result("a") is None
    assert "expected 5 bytes" in notes[0]
    assert list(store.workdir.glob("results/a.json.unreadable-*"))


def test_a_folder_in_the_place_of_a_result_is_set_aside(noted):
    store, notes = noted
    store.result_path("a").mkdir()
    assert store.read_result("a") is None
    assert "not a regular file" in notes[0]
    assert list(store.workdir.glob("results/a.json.unreadable-*"))


def test_a_failure_that_is_not_sound_is_none(noted):
    store, notes = noted
    store.write_json(store.failure_path("a"), {"when": ["x"], "message": "m"})
    assert store.failed_at("a") is None
    assert "when is a list, expected a text" in notes[0]


def test_the_stored_state_of_a_search_is_checked():
    space = Space(NOAH(), (1,), 3, 2, lambda architecture: 0)
    visited = [[[[1, 0], [5, 5], [0, 0]], 80.0]]
    good = {"generation": 1, "visited": visited, "history": [{"best": 80.0, "tried": 1}]}
    check_state(good, space)
    for bad in (
        {**good, "visited": []},
        {**good, "visited": [[[[1, 0]], 80.0]]},
        {**good, "history": [1]},
        {**good, "visited": [[visited[0][0], "80"]]},
        {"generation": 1},
        {**good, "generation": -1},
    ):
        with pytest.raises(ValueError, match="visited|history|generation"):
            check_state(bad, space)


def test_a_work_directory_that_is_a_file_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="another --workdir"):
        Store(epath.Path(tmp_path / "file"))
