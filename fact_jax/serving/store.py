"""The tasks of a bank on the devices: added, replaced, removed, and gathered for a batch."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fact_jax.errors import UserError
from fact_jax.serving.incoming import BankTask, Incoming, IncomingMember, Kind
from fact_jax.serving.stack import Stack, Tree
from fact_jax.text import printable_line
from fact_jax.training.mesh import put, replicated
from fact_jax.tuning.method import Factors


class UnknownTask(UserError):
    """Raised for a name that no task of the bank has."""


class StoredBytes(NamedTuple):
    """Bytes of a bank's tasks on one device, free places included."""

    factors: int
    heads: int


class Member(NamedTuple):
    """A factor set of a task: its kind, and where its factors and its head lie."""

    kind: Kind
    stack: Stack
    place: int
    heads: Stack
    head: int


class Entry(NamedTuple):
    """A task of the store."""

    task: BankTask
    members: tuple[Member, ...]


class Row(NamedTuple):
    """A row of a batch: an image, by its number in the request, and a member of its task."""

    image: int
    task: BankTask
    member: Member


class Batch(NamedTuple):
    """Rows of one kind with all that they need.

    Attributes:
      kind: what they have in common.
      shared: the factors of their dictionary, if they share one.
      rows: one for each image and member.
      images: the images' numbers, int32 [b], with zeros behind the rows' own.
      factors: "factors" and "scale" of each row, [b, ...].
      heads: stacks of heads, each with "kernel" [b, d, c] and "bias" [b, c]. They are those of the
        rows whose heads lie in this stack, and anything for other rows.
    """

    kind: Kind
    shared: Factors
    rows: list[Row]
    images: np.ndarray
    factors: Tree
    heads: list[tuple[Stack, Tree]]


class TaskStore:
    """Tasks by name, with their factors and heads in stacks on the devices. Thread-safe.

    Args:
      capacity: rows for which a new stack has room.
      batch_size: most rows of a batch.
      mesh: the devices, whose number divides `batch_size`.
      dtype: the type in which rows are stored.
    """

    def __init__(self, capacity: int, batch_size: int, mesh: Mesh, dtype: str):
        self._capacity, self._batch_size = capacity, batch_size
        self._mesh, self._dtype = mesh, dtype
        # Held while tasks change, and while batches gather what they need. Nothing waits for the
        # devices meanwhile, because programs are only dispatched.
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._stacks: dict[Any, Stack] = {}  # of factors by Kind, of heads by width
        self._shared: dict[Kind, Factors] = {}  # of the kinds that have a dictionary

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks."""
        with self._lock:
            return tuple(self._entries)

    @property
    def nbytes(self) -> StoredBytes:
        """Bytes on one device."""
        with self._lock:
            heads = sum(s.nbytes for key, s in self._stacks.items() if isinstance(key, int))
            shared = sum(x.nbytes for factors in self._shared.values() for x in factors.values())
            every = sum(stack.nbytes for stack in self._stacks.values())
            return StoredBytes(every - heads + shared, heads)

    def task(self, name: str) -> BankTask:
        """The task of a name. Raises UnknownTask."""
        with self._lock:
            return self._entry(name).task

    def add(self, tasks: Sequence[Incoming]) -> None:
        """Adds tasks at one moment, or replaces those of their names."""
        with self._lock:
            replaced = [self._entries[t.name] for t in tasks if t.name in self._entries]
            rows: dict[Any, list[Tree]] = {}
            for member in (member for task in tasks for member in task.members):
                if member.shared and member.kind not in self._shared:
                    self._shared[member.kind] = put(member.shared, replicated(self._mesh))
                rows.setdefault(member.kind, []).append(member.factors)
                rows.setdefault(member.width, []).append(member.head)
            freed = [s for entry in replaced for m in entry.members for s in (m.stack, m.heads)]
            for key, some in rows.items():  # while nothing has changed: memory may not suffice
                if key not in self._stacks:
                    self._stacks[key] = Stack(some[0], self._capacity, self._mesh, self._dtype)
                self._stacks[key].reserve(len(some) - freed.count(self._stacks[key]))
            for entry in replaced:
                _release(entry)
            places = {key: iter(self._stacks[key].write(some)) for key, some in rows.items()}
            for task in tasks:
                members = tuple(self._member(member, places) for member in task.members)
                self._entries[task.name] = Entry(task.task, members)
            self._drop_empty()

    def remove(self, name: str) -> None:
        """Removes a task. Raises UnknownTask."""
        with self._lock:
            _release(self._entry(name))
            del self._entries[name]
            self._drop_empty()

    def one_of_each(self) -> list[str]:
        """Names of some tasks that have every kind and every width of heads among them."""
        with self._lock:
            chosen = {(m.stack, m.heads): n for n, e in self._entries.items() for m in e.members}
            return list(dict.fromkeys(chosen.values()))

    def parts(self, names: Sequence[str]) -> Iterator[list[int]]:
        """Cuts a request, the task of each image, into parts of about `batch_size` rows.

        Images of a kind lie side by side, so that batches are full. Raises UnknownTask.

        Yields:
          Numbers of images. All members of an image's task are in the same part.
        """
        with self._lock:
            members = {name: self._entry(name).members for name in dict.fromkeys(names)}
        kinds = dict.fromkeys(several[0].kind for several in members.values())
        order = {kind: i for i, kind in enumerate(kinds)}
        part: list[int] = []
        count = 0
        for i in sorted(range(len(names)), key=lambda i: order[members[names[i]][0].kind]):
            more = len(members[names[i]])
            if part and count + more > self._batch_size:
                yield part
                part, count = [], 0
            part.append(i)
            count += more
        if part:
            yield part

    def gather(self, numbers: Sequence[int], names: Sequence[str]) -> list[Batch]:
        """Gathers factors and heads for images, at one moment.

        Args:
          numbers: of the images in the request.
          names: the tasks of all its images.
        """
        with self._lock:
            rows: dict[Kind, list[Row]] = {}
            for i in numbers:
                task, members = self._entry(names[i])
                for member in members:
                    rows.setdefault(member.kind, []).append(Row(i, task, member))
            return [
                self._batch(kind, some[start : start + self._batch_size])
                for kind, some in rows.items()
                for start in range(0, len(some), self._batch_size)
            ]

    def _batch(self, kind: Kind, rows: list[Row]) -> Batch:
        size = padded_rows(len(rows), self._batch_size, self._mesh.size)

        def padded(values: list[int]) -> np.ndarray:
            return np.pad(np.array(values, np.int32), (0, size - len(rows)))

        factors = rows[0].member.stack.read(padded([row.member.place for row in rows]))
        heads = []
        for stack in dict.fromkeys(row.member.heads for row in rows):
            places = [row.member.head if row.member.heads is stack else 0 for row in rows]
            heads.append((stack, stack.read(padded(places))["head"]))
        shared, images = self._shared.get(kind, {}), padded([row.image for row in rows])
        return Batch(kind, shared, rows, images, factors, heads)

    def _member(self, m: IncomingMember, places: dict[Any, Iterator[int]]) -> Member:
        stack, heads = self._stacks[m.kind], self._stacks[m.width]
        return Member(m.kind, stack, next(places[m.kind]), heads, next(places[m.width]))

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            some = ", ".join(printable_line(n) for n in list(self._entries)[:5])
            some = f": {some}{', ...' * (len(self._entries) > 5)}" if some else ""
            raise UnknownTask(
                f"There is no task {printable_line(str(name))[:100]!r} among the "
                f"{len(self._entries)} of this bank{some}. Add it with bank.add(name, path)."
            )
        return self._entries[name]

    def _drop_empty(self) -> None:
        """Gives back the memory of stacks without a row."""
        self._stacks = {key: stack for key, stack in self._stacks.items() if stack.used}
        self._shared = {kind: x for kind, x in self._shared.items() if kind in self._stacks}


def _release(entry: Entry) -> None:
    for member in entry.members:
        member.stack.release(member.place)
        member.heads.release(member.head)


def padded_rows(rows: int, batch_size: int, devices: int) -> int:
    """Rows of a batch: the devices times a power of two, so that there are few programs."""
    return min(devices << (-(-rows // devices) - 1).bit_length(), batch_size)
