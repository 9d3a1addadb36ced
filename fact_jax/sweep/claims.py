"""Claims on cells, which divide the work where several runs share one work directory.

A claim on a cell is a lock on DIR/claims/<cell>. Local and shared file systems lock by themselves
(flock), and a process that dies, however it does, lets go. Where there are no such locks (buckets)
the file is a lease: its owner writes a new number into it every now and then, and others may take
it when they have seen no new one for long enough. No clock of another machine is ever read. Buckets
do not compare and write in one step, so after a stop of that length two may work on one cell; both
write the same.

The `filelock` package is not exact here. It leaves its files behind, it refuses a lock file that
another account made in a sticky folder, and where nothing locks it falls back to files that a
killed process does not let go of.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

BEAT = 20.0  # seconds between a lease's numbers
DEAD_AFTER = 90.0  # seconds without a new one
SETTLE = 2.0  # seconds in which two that write at once find out who was later


class Claims:
    """Claims of one process on the cells of a work directory."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._me = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._seen: dict[str, tuple[str | None, float]] = {}  # of others' leases, and since when
        self._leases: bool | None = None  # in the place of locks; known with the first claim

    @contextlib.contextmanager
    def hold(self, names: Sequence[str]) -> Iterator[bool]:
        """All of these, or none (False) if another run has any of them. Released at the end."""
        with contextlib.ExitStack() as held:
            for name in sorted(names):
                if not held.enter_context(self._one(name)):
                    held.close()
                    yield False
                    return
            yield True

    @contextlib.contextmanager
    def _one(self, name: str) -> Iterator[bool]:
        path = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._leases is None:
            self._leases = "://" in os.fspath(path) or not _has_locks(Path(os.fspath(self._folder)))
        held = self._leased(path) if self._leases else _locked(Path(os.fspath(path)))
        with held as mine:
            yield mine

    @contextlib.contextmanager
    def _leased(self, path: epath.Path) -> Iterator[bool]:
        content = _read(path)
        if content is not None:  # even if it is empty: its owner may be about to write
            before, since = self._seen.get(path.name, (None, 0.0))
            if content != before:
                self._seen[path.name] = content, time.monotonic()
                yield False
                return
            if time.monotonic() - since < DEAD_AFTER:
                yield False
                return
        self._seen.pop(path.name, None)
        path.write_text(f"{self._me} 0")
        time.sleep(SETTLE)
        if not self._owns(path):
            yield False
            return
        done = threading.Event()

        def beat() -> None:
            number = 0
            while not done.wait(BEAT):
                number += 1
                with contextlib.suppress(OSError):  # the next one may get through
                    if not self._owns(path):  # taken while this process was held up
                        return
                    path.write_text(f"{self._me} {number}")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield True
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(OSError):  # others see that it does not beat
                if self._owns(path):
                    path.unlink(missing_ok=True)

    def _owns(self, path: epath.Path) -> bool:
        return (_read(path) or "").startswith(f"{self._me} ")


def _read(path: epath.Path) -> str | None:
    try:
        text: str = path.read_bytes()[:200].decode(errors="replace")
        return text
    except FileNotFoundError:
        return None


def _has_locks(folder: Path) -> bool:
    """Whether this file system locks: tried on a file that no other process knows."""
    import fcntl

    probe = folder / f".locks-{uuid.uuid4().hex[:8]}"
    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        except OSError:
            os.close(descriptor)
            raise
        # Its last owner may have removed the file between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # a file without a lock does no harm
            path.unlink(missing_ok=True)
        os.close(descriptor)
