"""Methods by name: how a config or a factor file says which method it means."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fact_jax.errors import UserError
from fact_jax.tuning import METHODS
from fact_jax.tuning.combination import Combination
from fact_jax.tuning.method import Method


def build(name: str, settings: dict[str, Any]) -> Method:
    """The method of this name; "a+b" is a Combination, whose settings hold those of its parts by
    their names. Raises UserError for unknown names and settings."""
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise UserError(f"There is no method {unknown[0]!r}; choose from {', '.join(METHODS)}.")
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise UserError(f"{name!r} names a method twice; one of each can be combined.")
        settings = dict(settings)
        built = tuple((part, build(part, settings.pop(part, {}))) for part in parts)
        _check(name, settings, {"scale"})
        _check_scale(name, settings)
        return Combination(built, **settings)
    _check(name, settings, {field.name for field in dataclasses.fields(METHODS[name])})
    _check_scale(name, settings)
    missing = [
        f.name
        for f in dataclasses.fields(METHODS[name])
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in settings
    ]
    if missing:
        raise UserError(f"Method {name} needs {', '.join(missing)}.")
    # JSON has lists where a dataclass that is a key has tuples.
    return METHODS[name](**{k: _tuples(v) for k, v in settings.items()})


def describe(method: Method) -> tuple[str, dict[str, Any]]:
    """Name and settings from which `build` makes it again, JSON-able."""
    if isinstance(method, Combination):
        described = [(name, describe(part)[1]) for name, part in method.parts]
        return "+".join(name for name, _ in described), {
            **dict(described),
            "scale": method.scale,
        }
    name = next(name for name, kind in METHODS.items() if type(method) is kind)
    return name, dataclasses.asdict(method)


def _check_scale(name: str, settings: dict[str, Any]) -> None:
    scale = settings.get("scale", 1.0)
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise UserError(f"Method {name}: scale is {scale!r}; expected a finite number.")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _check(name: str, settings: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(settings) - known):
        raise UserError(
            f"Method {name} has no setting {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known)) or 'none'}."
        )
