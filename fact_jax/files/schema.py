"""Types of JSON values, written as Python's annotations and checked at run time.

A schema is made of `str`, `bool`, `int`, `float`, `Any`, `X | None`, `list[X]`, `dict[str, X]`,
`tuple[X, Y]` (a list of that length), TypedDicts, dataclasses (an object of their fields), and
`Annotated[X, Between(low, high)]`, which limits a number or a length.
"""

import contextlib
import dataclasses
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
_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_HELD = {dict: "an object", list: "a list", types.NoneType: "null"}  # what a value is called


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
            _check_limits(value, limits, where)
    elif origin in (Union, types.UnionType):
        _check_any(value, arguments, where)
    elif origin is list:
        _expect(value, list, where)
        for i, item in enumerate(value):
            check_type(item, arguments[0], f"{where}[{i}]")
    elif origin is tuple:
        _expect(value, list, where)
        if len(value) != len(arguments):
            _refuse(where, f"{len(value)} entries", str(len(arguments)), verb="has")
        for i, (item, kind) in enumerate(zip(value, arguments, strict=True)):
            check_type(item, kind, f"{where}[{i}]")
    elif origin is dict:
        _expect(value, dict, where)
        for key, item in value.items():
            check_type(item, arguments[1], f"{where}.{key:.40}".lstrip("."))
    elif is_typeddict(schema) or dataclasses.is_dataclass(schema):
        _expect(value, dict, where)
        _check_fields(value, schema, where)
    else:
        _expect(value, schema, where)


def _check_limits(value: Any, limits: Between, where: str) -> None:
    expected = f"{_digits(limits.low)} to {_digits(limits.high)}"
    if isinstance(value, int | float):
        if not limits.low <= value <= limits.high:
            _refuse(where, f"{value!r:.40}", expected)
    elif not limits.low <= len(value) <= limits.high:
        unit = "characters" if isinstance(value, str) else "entries"
        _refuse(where, f"{len(value):,} {unit}", expected, verb="has")


def _check_any(value: Any, schemas: Sequence[Any], where: str) -> None:
    """Checks that one of the schemas fits; raises the last one's reason otherwise."""
    if value is None and types.NoneType in schemas:
        return
    *others, last = (kind for kind in schemas if kind is not types.NoneType)
    for schema in others:
        with contextlib.suppress(ValueError):
            return check_type(value, schema, where)
    check_type(value, last, where)


def _check_fields(value: dict[str, Any], schema: Any, where: str) -> None:
    for key, (kind, required) in _fields(schema).items():
        name = f"{where}.{key}".lstrip(".")
        if key in value:
            check_type(value[key], kind, name)
        elif required:
            raise ValueError(f"{name} is missing")


@functools.lru_cache
def _fields(schema: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it must be there."""
    if is_typeddict(schema):
        required = schema.__required_keys__
    else:
        missing = dataclasses.MISSING
        fields = dataclasses.fields(schema)
        required = {f.name for f in fields if f.default is f.default_factory is missing}
    types_of = get_type_hints(schema, include_extras=True)
    return {name: (kind, name in required) for name, kind in types_of.items()}


def _expect(value: Any, kind: type, where: str) -> None:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        _refuse(where, _HELD.get(type(value)) or f"{value!r:.40}", _NAMES[kind])
    limit = {int: _LARGEST_INT, float: _LARGEST_FLOAT}.get(kind)
    if limit is not None and not abs(value) <= limit:
        _refuse(where, f"{value!r:.40}", f"{_NAMES[kind]}, at most {_digits(limit)}")


def _digits(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _refuse(where: str, held: str, expected: str, verb: str = "is") -> NoReturn:
    subject = f"{where} {verb}" if where else "it holds"
    raise ValueError(f"{subject} {held}, expected {expected}")
