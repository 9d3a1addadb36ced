"""The pickle programs of PyTorch's files, interpreted without executing anything.

A pickle can call any function, so Python's unpickler is not used: `run` knows the few opcodes that
tensors need and refuses the rest. It calls nothing: a class or function is a name here, and what a
program makes of one is a tensor, a dict, or a `_Skipped` value without content. Its memory is
bounded by the limits of guards.py. (The unpickler's is not: its memo is an array that one opcode
can make gigabytes long. A subclass of the one in pure Python would need as many lines, since it
hashes any key and counts no opcodes.) Format: torch/serialization.py, torch/_utils.py
(`_rebuild_tensor_v2`).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fact_jax.files.guards import (
    MAX_CONTAINER_DEPTH,
    MAX_NAME,
    MAX_OPCODES,
    MAX_TENSORS,
    are_sizes,
)

STORAGES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
ORDERED_DICT = "collections OrderedDict"
_DICTS = {ORDERED_DICT, "collections defaultdict"}
# What training scripts store beside the weights: metrics, paths, dates. A call of one of these
# gives a value that is skipped. Objects of any class (NEWOBJ) are skipped, too; see `new_object`.
_VALUES: dict[str, str] = {
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy": "dtype ndarray",
    "_codecs": "encode",
    "__builtin__": "set frozenset complex bytearray slice range xrange object",
    "builtins": "set frozenset complex bytearray slice range object",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size device",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
_SKIPPED_CALLS = {f"{module} {name}" for module, names in _VALUES.items() for name in names.split()}


class _Global(NamedTuple):
    """A class or function: its module and name, and nothing else."""

    name: str

    @property
    def shown(self) -> str:
        return repr(self.name.replace(" ", ".")[:100])


class _Skipped(NamedTuple):
    """A value that is not needed, such as an argparse.Namespace; all that is put in is dropped."""

    kind: _Global


class Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class Refused(Exception):
    """What is wrong with the pickle program, as the rest of a sentence."""


def tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of nested dicts and lists; other leaves are left out.

    A program can make a container hold another many times, or itself: hence the limits.
    """
    if isinstance(value, _Skipped | _Global):
        kind = value.kind if isinstance(value, _Skipped) else value
        raise Refused(f"holds no dict of tensors, but an object of {kind.shown}")
    if not _holds(value):
        raise Refused("holds no tensors")
    seen: set[str] = set()
    for name, tensor in _walk(value, "", 0, iter(range(MAX_OPCODES))):
        if name in seen:
            raise Refused(f"holds two tensors named {name!r}")
        seen.add(name)
        if len(seen) > MAX_TENSORS:
            raise Refused(f"holds more than {MAX_TENSORS:,} tensors")
        yield name, tensor
    if not seen:
        raise Refused("holds no tensors")


def _walk(value: Any, name: str, depth: int, budget: Iterator) -> Iterator[tuple[str, Tensor]]:
    """The tensors below a value; `budget` has an item for every entry that may be visited."""
    if isinstance(value, Tensor):
        yield name, value
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if next(budget, None) is None or depth == MAX_CONTAINER_DEPTH:
            raise Refused("holds containers nested too deeply or in a circle")
        if _holds(child):
            child_name = f"{name}.{key}" if depth else str(key)
            if len(child_name) > MAX_NAME:
                raise Refused(f"holds a name of more than {MAX_NAME} characters")
            yield from _walk(child, child_name, depth + 1, budget)


def _holds(value: Any) -> bool:
    return isinstance(value, dict | Tensor) or type(value) in (list, tuple)


def run(program: bytes) -> Any:
    """The value that a pickle program stands for, calling nothing. Raises Refused."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name == "STOP":
                return machine.pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise Refused(f"uses the pickle opcode {opcode.name}, which tensors do not need")
            if count == MAX_OPCODES:
                raise Refused(f"has a pickle of more than {MAX_OPCODES:,} opcodes")
            action(machine, argument)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"has a damaged pickle ({type(error).__name__}: {reason})") from error
    raise Refused("has a pickle without an end")


class _Machine:
    """A pickle's stack, the marks into it, and the memo: a dict, which grows by what is put in."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def tuple_of(self, count: int) -> None:
        self.push(tuple(self.pop() for _ in range(count))[::-1])

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, _Skipped):
            return
        _need(isinstance(target, dict), "items set on something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only these: hashing nested tuples can take for ever.
            _need(type(key) in (str, int), "a dict key that is neither text nor integer")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, _Skipped):
            _need(type(target) is list, "elements added to something that is no list")
            target.extend(values)

    def find(self, name: str) -> None:
        self.push(_Global(name))

    def storage(self, _: Any) -> None:
        tag, kind, key, _location, numel = self.pop()
        _need(tag == "storage" and isinstance(kind, _Global), "a reference to no storage")
        _need(type(key) is str and are_sizes((numel,)), "an ill-formed storage")
        if kind.name not in STORAGES:
            raise Refused(f"names {kind.shown}, which is no kind of storage that is read here")
        self.push(Storage(STORAGES[kind.name], key, numel))

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        _need(isinstance(function, _Global) and type(arguments) is tuple, "a call of no function")
        if function.name == TENSOR:
            self.push(_tensor(*arguments[:4]))
        elif function.name == _PARAMETER:
            _need(isinstance(arguments[0], Tensor), "a parameter of no tensor")
            self.push(arguments[0])
        elif function.name in _DICTS:
            _need(function.name != ORDERED_DICT or not arguments, f"a call of {function.shown}")
            self.push({})
        elif function.name in _SKIPPED_CALLS:
            self.push(_Skipped(function))
        else:
            raise Refused(f"calls {function.shown}, which is code and not part of a tensor")

    def new_object(self, _: Any) -> None:
        """An object of any class, such as argparse.Namespace: its name, and nothing of it."""
        arguments, kind = self.pop(), self.pop()
        _need(isinstance(kind, _Global) and type(arguments) is tuple, "an object of no class")
        self.push(_Skipped(kind))

    def build(self, _: Any) -> None:
        """An object's attributes: `_metadata` of a state dict, the content of a Namespace."""
        self.pop()
        target = self.stack[-1]
        _need(isinstance(target, dict | _Skipped), "attributes of an unexpected object")


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Refused(f"has a pickle with {otherwise}")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    _need(isinstance(storage, Storage), "a tensor without storage")
    sound = are_sizes(shape) and are_sizes(strides) and are_sizes((offset,))
    _need(sound, "a tensor whose shape, strides or offset are not whole numbers from 0 to 2**48")
    _need(len(shape) == len(strides), "a tensor whose strides miss its shape")
    return Tensor(storage, offset, shape, strides)


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "MARK": _Machine.mark,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": _Machine.find,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Machine.push
    ),
}
