"""Allowed values of settings: one check and one sentence for methods, configs and flags.

A dataclass states them in its fields, ``rank: int = setting(16, Whole(1))``. A method checks its
own with `check_fields`; `fact_jax.sweep.settings` has those of a sweep.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from fact_jax.errors import UserError


class Range(Protocol):
    """Values that a setting may have, with the words for one of them and for several."""

    @property
    def one(self) -> str: ...
    @property
    def many(self) -> str: ...
    def allows(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `low` to `high`, both included; neither True nor 2.0 is one."""

    low: int = 0
    high: int | None = None

    @property
    def _bounds(self) -> str:
        return f"of {self.low} or more" if self.high is None else f"from {self.low} to {self.high}"

    @property
    def one(self) -> str:
        return f"a whole number {self._bounds}"

    @property
    def many(self) -> str:
        return f"whole numbers {self._bounds}"

    def allows(self, value: Any) -> bool:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole and self.low <= value and (self.high is None or value <= self.high)


@dataclasses.dataclass(frozen=True)
class Real:
    """Finite numbers between two bounds; `above` and `below` say that a bound is left out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    @property
    def _bounds(self) -> str:
        if math.isinf(self.high):
            if math.isinf(self.low):
                return ""
            return f" above {self.low:g}" if self.above else f" of {self.low:g} or more"
        start = f" above {self.low:g}" if self.above else f" from {self.low:g}"
        join = "and" if self.above and self.below else "to"
        return f"{start} {join} {'below ' if self.below else ''}{self.high:g}"

    @property
    def one(self) -> str:
        return f"a finite number{self._bounds}"

    @property
    def many(self) -> str:
        return f"numbers{self._bounds or ' that are finite'}"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        try:
            number = float(value)
        except OverflowError:  # a whole number past the largest float
            return False
        low = self.low < number if self.above else self.low <= number
        high = number < self.high if self.below else number <= self.high
        return math.isfinite(number) and low and high


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Some texts or whole numbers, read anew at every check: variants may be added."""

    choices: Iterable[str | int]

    @property
    def one(self) -> str:
        names = [repr(choice) for choice in self.choices]
        return " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"

    many = one

    def allows(self, value: Any) -> bool:
        return type(value) in (str, int) and value in list(self.choices)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True and False."""

    one = "True or False"
    many = one

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Text:
    """Texts of any kind."""

    one = "a text"
    many = "texts"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class Names:
    """Names with commas between them, or a tuple of names; if `of` is given, some of these."""

    of: tuple[str, ...] = ()

    @property
    def one(self) -> str:
        choices = f", each of {', '.join(self.of)}" if self.of else ""
        return f"names such as 'a,b' or ('a', 'b'){choices}"

    @property
    def many(self) -> str:
        return self.one

    def allows(self, value: Any) -> bool:
        names = value if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(name, str) for name in names):
            return False
        each = [name.strip() for text in names for name in text.split(",") if name.strip()]
        return not self.of or set(each) <= set(self.of)


@dataclasses.dataclass(frozen=True)
class Each:
    """Tuples of values that `of` allows, with at least `least` of them."""

    of: Range
    least: int = 1

    @property
    def one(self) -> str:
        return f"{self.of.many}, with commas between them" + (", at least one" * (self.least > 0))

    many = one

    def allows(self, value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and len(value) >= self.least
            and all(self.of.allows(item) for item in value)
        )


@dataclasses.dataclass(frozen=True)
class OrNone:
    """None, or what `of` allows."""

    of: Range

    @property
    def one(self) -> str:
        return f"None or {self.of.one}"

    many = one

    def allows(self, value: Any) -> bool:
        return value is None or self.of.allows(value)


FLOAT32_MAX = float(np.finfo(np.float32).max)
RATE = Real(0, FLOAT32_MAX)  # of learning or decay
SHARE = Real(0, 1, below=True)  # what is left out leaves something
SCALE = Real(-FLOAT32_MAX, FLOAT32_MAX)
SIZE = Whole(1, 65_536)  # rank, width or tokens of a method; the widest ViTs have 6,144 (ViT-22B)


def check(name: str, value: Any, allowed: Range, what: str = "") -> None:
    """Raises UserError naming the setting, its value and the allowed ones, and `what` it is."""
    if allowed.allows(value):
        return
    shown = "empty" if isinstance(value, list | tuple) and not value else f"{value!r:.200}"
    raise UserError(f"{name} is {shown}; expected {allowed.one}{f' ({what})' if what else ''}.")


def setting(default: Any, allowed: Range, what: str = "", **metadata: Any) -> Any:
    """A dataclass field with its allowed values, what it is, and more that is known of it."""
    more = {"allowed": allowed, "what": what, **metadata}
    return dataclasses.field(default=default, metadata=more)


def allowed_values(kind: Any) -> dict[str, Range]:
    """The ranges of a dataclass's fields, by name."""
    fields = dataclasses.fields(kind)
    return {f.name: f.metadata["allowed"] for f in fields if "allowed" in f.metadata}


def check_fields(instance: Any) -> None:
    """Raises UserError for a field of a frozen dataclass whose range refuses its value.

    NumPy's scalars become Python's numbers and lists tuples, so that the instance can be a key and
    be written as JSON.
    """
    for field, allowed in allowed_values(instance).items():
        value = getattr(instance, field)
        if isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, list):
            value = tuple(value)
        object.__setattr__(instance, field, value)
        check(field, value, allowed)
