"""Types of JSON values, written as Python's annotations and checked at run time.

A schema is made of `str`, `bool`, `int`, `float`, `Any`, `X | None`, `list[X]`, `dict[str, X]`,
`tuple[X, Y]` (a list of that length), TypedDicts, and `Annotated[X, Between(low, high)]`, which
limits a number or a length.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Sequence
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_LARGEST_INT = 2**53  # what a float holds exactly
_LARGEST_FLOAT = 1e30  # means, squares and figures of such numbers stay finite
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


class Between(NamedTuple):
    """Limits, both included, of a number or of the length of a list or text."""

    low: float
    high: float


def check_type(value: Any, schema: Any, where: str = "") -> None:
    """Raises ValueError, naming the entry, for a JSON value that is not of the schema.

    A bool is no number, an int is a float; numbers are finite and not huge.
    """
    origin, arguments = get_origin(schema), get_args(schema)
    if schema is Any:
        return
    if origin is Annotated:
        check_type(value, arguments[0], where)
        for limits in arguments[1:]:
            size = value if isinstance(value, int | float) else len(value)
            if not limits.low <= size <= limits.high:
                what = "" if size is value else f" has {size:,} entries"
                expected = f"{limits.low:,g} to {limits.high:,g}"
                _refuse(where, f"{what or f'is {value!r:.40}'}, expected {expected}")
    elif origin in (Union, types.UnionType):
        _check_any(value, arguments, where)
    elif origin is list:
        _expect(value, list, "a list", where)
        for i, item in enumerate(value):
            check_type(item, arguments[0], f"{where}[{i}]")
    elif origin is tuple:
        _expect(value, list, "a list", where)
        if len(value) != len(arguments):
            _refuse(where, f"has {len(value)} entries, expected {len(arguments)}")
        for i, (item, kind) in enumerate(zip(value, arguments, strict=True)):
            check_type(item, kind, f"{where}[{i}]")
    elif origin is dict:
        _expect(value, dict, "an object", where)
        for key, item in value.items():
            check_type(item, arguments[1], f"{where}.{key:.40}".lstrip("."))
    elif is_typeddict(schema):
        _expect(value, dict, "an object", where)
        _check_fields(value, schema, where)
    elif schema is float:
        if type(value) not in (int, float) or not abs(value) <= _LARGEST_FLOAT:
            _refuse(where, f"is {value!r:.40}, expected a number")
    elif type(value) is not schema or (schema is int and not abs(value) <= _LARGEST_INT):
        _refuse(where, f"is {value!r:.40}, expected {_NAMES[schema]}")


def _check_any(value: Any, schemas: Sequence[Any], where: str) -> None:
    """The reason of the last of the schemas, if none fits."""
    if value is None and types.NoneType in schemas:
        return
    *others, last = (kind for kind in schemas if kind is not types.NoneType)
    for schema in others:
        with contextlib.suppress(ValueError):
            return check_type(value, schema, where)
    check_type(value, last, where)


def _check_fields(value: dict[str, Any], schema: Any, where: str) -> None:
    for key, kind in _fields(schema).items():
        name = f"{where}.{key}".lstrip(".")
        if key in value:
            check_type(value[key], kind, name)
        elif key in schema.__required_keys__:
            _refuse(name, "is missing")


@functools.lru_cache
def _fields(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _expect(value: Any, kind: type, name: str, where: str) -> None:
    if type(value) is not kind:
        _refuse(where, f"is {value!r:.40}, expected {name}")


def _refuse(where: str, text: str) -> NoReturn:
    raise ValueError(f"{where or 'the value'} {text.strip()}")
