"""The reader of JSON files that others may have touched, bounded and checked.

Everything that is not sound JSON of the expected type ends in one `UserError` that names the file.
"""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from fact_jax.errors import UserError
from fact_jax.files.guards import is_regular
from fact_jax.files.schema import check_type

_MAX_BYTES = 64 << 20
_MAX_DEPTH = 100  # of nested lists and objects
_MAX_DIGITS = 20  # of an integer: all of 64 bits


def read_json(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    schema: Any = dict[str, Any],
    max_bytes: int = _MAX_BYTES,
    allow_nan: bool = False,
    allow_surrogates: bool = False,
) -> Any:
    """The value of a JSON file or of its bytes.

    Args:
      source: a path, also of `etils.epath`, or the content itself.
      name: what messages call the source; the path by default.
      schema: the type that the value must have, as `schema.check_type` takes it.
      max_bytes: largest content that is read.
      allow_nan: accept NaN and Infinity, which `json.dumps` writes.
      allow_surrogates: accept texts with lone surrogates, as file names that are not UTF-8 have.

    Raises:
      UserError: the content is too large, no UTF-8, no JSON, nested deeper than 100 levels, of
        another type, has a key twice in one object, or has a number or a text that nothing can be
        done with.
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
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=float if allow_nan else _finite,
            parse_constant=float if allow_nan else _no_constant,
        )
        _check(value, allow_surrogates)
    except RecursionError as error:
        raise UserError(f"{name} is not sound JSON: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not sound JSON: it is not UTF-8 ({error.reason}).") from error
    except ValueError as error:
        raise UserError(f"{name} is not sound JSON: {error}.") from error
    try:
        check_type(value, schema)
    except ValueError as error:
        raise UserError(f"{name}: {error}.") from error
    return value


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
        raise ValueError("a text has a NUL character")
    if not allow_surrogates and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text has a lone surrogate, which is no character") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these entries; ValueError if two have the same key."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        (key, count), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:50]!r} is there {count:,} times in one object")
    return entries


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:30]} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number of JSON")
