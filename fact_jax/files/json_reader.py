"""Bounded reader of JSON files that others may have touched.

Everything that is not sound JSON of the expected kind ends in one `UserError` that names the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fact_jax.errors import UserError
from fact_jax.files.guards import is_regular

_MAX_BYTES = 64 << 20
_MAX_DEPTH = 100  # of nested lists and objects
_MAX_DIGITS = 20  # of an integer: all of 64 bits
_REQUIRED: Any = object()


def read_json(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    expect: type | tuple[type, ...] = dict,
    max_bytes: int = _MAX_BYTES,
    allow_nan: bool = False,
    allow_surrogates: bool = False,
) -> Any:
    """The value of a JSON file or of its bytes.

    Args:
      source: a path, also of `etils.epath`, or the content itself.
      name: what messages call the source; the path by default.
      expect: type or types of the value.
      max_bytes: largest content that is read.
      allow_nan: accept NaN and Infinity, which `json.dumps` writes.
      allow_surrogates: accept texts with lone surrogates, as file names that are not UTF-8 have.

    Raises:
      UserError: the content is too large, no UTF-8, no JSON, nested deeper than 100 levels, of
        another type, or has a number or a text that nothing can be done with.
      OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        data, name = source[: max_bytes + 1], name or "The JSON text"
    else:
        path: Any = source if hasattr(source, "open") else Path(source)
        name = name or str(path)
        if path.exists() and not is_regular(path):
            raise UserError(f"{name} is not a regular file; expected a JSON file.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    try:
        if len(data) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_int=_integer,
            parse_float=float if allow_nan else _finite,
            parse_constant=float if allow_nan else _no_constant,
        )
        _check(value, allow_surrogates)
        kinds = expect if isinstance(expect, tuple) else (expect,)
        if type(value) not in kinds:
            expected = " or ".join(_kind(kind) for kind in kinds)
            raise ValueError(f"it holds {_kind(type(value))}, expected {expected}")
    except RecursionError as error:
        raise UserError(f"{name} is not sound JSON: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not sound JSON: it is not UTF-8 ({error.reason}).") from error
    except ValueError as error:
        raise UserError(f"{name} is not sound JSON: {error}.") from error
    return value


def field(
    record: Mapping[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    default: Any = _REQUIRED,
    *,
    name: str,
) -> Any:
    """The entry of a record, its type checked.

    A bool is no int; an int is a float. With a default, a missing or null entry is the default.

    Args:
      record: an object of a JSON file.
      key: name of the entry.
      kind: type or types of the entry.
      default: value of an entry that is missing or null; without it, the entry must be there.
      name: what the message calls the file.

    Raises:
      UserError: the entry is missing or of another type.
    """
    value = record.get(key)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is None and default is not _REQUIRED:
        return default
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    expected = " or ".join(_kind(kind) for kind in kinds)
    held = f"is {_kind(type(value))}" if key in record else "is missing"
    raise UserError(f"{name}: {key!r} {held}, expected {expected}.")


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind(kind: type) -> str:
    return _KINDS.get(kind, kind.__name__)


def _check(value: Any, allow_surrogates: bool) -> None:
    """Raises ValueError for a value that is nested too deeply or has unusable texts."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        children: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item, allow_surrogates)
            elif isinstance(item, dict):
                children += item.keys()
                children += item.values()
            elif isinstance(item, list):
                children += item
        if not children:
            return
        level = children
    raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")


def _check_text(text: str, allow_surrogates: bool) -> None:
    if "\0" in text:
        raise ValueError("a text of it has a NUL character")
    if not allow_surrogates and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text of it has a lone surrogate, which is no character") from error


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of it has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:30]} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number of JSON")
