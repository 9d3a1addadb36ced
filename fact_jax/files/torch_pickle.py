"""The pickle programs of PyTorch's files, interpreted without executing anything.

A pickle can call any function. `_Interpreter` is Python's own unpickler, in pure Python, with a
short list of opcodes. It imports nothing: a class or function is a `_Global` here, which holds its
name. `_Global` is the only value that can be called. A call gives a tensor, a dict, or a `_Skipped`
value without content. The limits of guards.py bound time and memory. (The unpickler in C has no
such bound: its memo is an array that one opcode can make gigabytes long.) Format:
torch/serialization.py, torch/_utils.py (`_rebuild_tensor_v2`).
"""

import io
import pickle
import pickletools
import struct
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
# Classes and functions of the values that training scripts store beside the weights: metrics,
# paths, dates. A call of one gives a skipped value. Objects of any class (NEWOBJ) are skipped, too.
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


class Refused(Exception):
    """The fault of a pickle program, as the rest of a sentence."""


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Refused(f"has a pickle with {otherwise}")


class _Skipped(NamedTuple):
    """A value that is not needed, such as an argparse.Namespace; it drops its elements."""

    kind: "_Global"

    def append(self, value: Any) -> None:
        """Drops an element."""

    def extend(self, values: list[Any]) -> None:
        """Drops elements."""


class Storage(NamedTuple):
    """The numbers of one or several tensors, a member of the zip file."""

    dtype: np.dtype
    key: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _Global(NamedTuple):
    """A class or function: its module and name, and nothing else."""

    name: str

    @property
    def shown(self) -> str:
        """The name as messages have it."""
        return repr(self.name.replace(" ", ".")[:100])

    def __call__(self, *arguments: Any) -> Any:
        """Stands for the result of a call. Raises Refused for a call that no tensor needs."""
        if self.name == TENSOR:
            return _tensor(*arguments[:4])
        if self.name == _PARAMETER:
            _need(isinstance(arguments[0], Tensor), "a parameter of no tensor")
            return arguments[0]
        if self.name in _DICTS:
            _need(self.name != ORDERED_DICT or not arguments, f"a call of {self.shown}")
            return {}
        if self.name in _SKIPPED_CALLS:
            return _Skipped(self)
        raise Refused(f"calls {self.shown}, which is code and not part of a tensor")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    _need(isinstance(storage, Storage), "a tensor without storage")
    sound = are_sizes(shape) and are_sizes(strides) and are_sizes((offset,))
    _need(sound, "a tensor whose shape, strides or offset are not whole numbers from 0 to 2**48")
    _need(len(shape) == len(strides), "a tensor whose strides miss its shape")
    return Tensor(storage, offset, shape, strides)


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


def _walk(value: Any, name: str, depth: int, budget: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
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
    try:
        return _Interpreter(io.BytesIO(program)).load()
    except (
        *(IndexError, KeyError, TypeError, ValueError, AttributeError, EOFError),
        *(struct.error, pickle.UnpicklingError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"has a damaged pickle ({type(error).__name__}: {reason})") from error


class _Opcodes(dict[int, Callable[..., Any]]):
    """The opcodes that a program may use, each with its action, for one run of a program."""

    left = MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[..., Any]:
        self.left -= 1
        if self.left < 0:
            raise Refused(f"has a pickle of more than {MAX_OPCODES:,} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[..., Any]:
        names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        if not names:
            raise ValueError(f"there is no opcode {code:#04x}")
        raise Refused(f"uses the pickle opcode {names[0]}, which tensors do not need")


_Unpickler: Any = pickle._Unpickler  # typeshed knows little of it


class _Interpreter(_Unpickler):  # type: ignore[misc]
    """Python's unpickler without opcodes that import, read attributes or make objects."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.dispatch = _Opcodes(_ACTIONS)

    def find_class(self, module: str, name: str) -> _Global:
        return _Global(f"{module} {name}")

    def persistent_load(self, reference: Any) -> Storage:
        tag, kind, key, _location, numel = reference
        _need(tag == "storage" and isinstance(kind, _Global), "a reference to no storage")
        _need(type(key) is str and are_sizes((numel,)), "an ill-formed storage")
        if kind.name not in STORAGES:
            raise Refused(f"names {kind.shown}, which is no kind of storage that is read here")
        return Storage(STORAGES[kind.name], key, numel)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, _Skipped):
            return
        _need(isinstance(target, dict), "items set on something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only these: hashing nested tuples can take for ever.
            _need(type(key) in (str, int), "a dict key that is neither text nor integer")
            target[key] = value

    def load_newobj(self) -> None:
        """Skips an object of any class, such as argparse.Namespace; its name is kept."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        _need(isinstance(kind, _Global) and type(arguments) is tuple, "an object of no class")
        self.append(_Skipped(kind))

    def load_build(self) -> None:
        """Drops an object's attributes: `_metadata` of a state dict, the content of a Namespace."""
        self.stack.pop()
        _need(isinstance(self.stack[-1], dict | _Skipped), "attributes of an unexpected object")


_INHERITED = (
    "PROTO STOP MARK GLOBAL BINPERSID REDUCE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE "
    "NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE APPEND APPENDS EMPTY_TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 TUPLE EMPTY_DICT EMPTY_LIST"
)
_CODES = [getattr(pickle, name)[0] for name in _INHERITED.split()]
_ACTIONS: dict[int, Callable[..., Any]] = {
    **{code: _Unpickler.dispatch[code] for code in _CODES},
    pickle.SETITEM[0]: _Interpreter.load_setitem,
    pickle.SETITEMS[0]: _Interpreter.load_setitems,
    pickle.NEWOBJ[0]: _Interpreter.load_newobj,
    pickle.BUILD[0]: _Interpreter.load_build,
}
