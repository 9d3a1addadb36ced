"""Methods by name, as configs and factor files name them."""

import dataclasses
from typing import Any

from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, check
from fact_jax.tuning import METHODS
from fact_jax.tuning.combination import Combination
from fact_jax.tuning.method import Method


def build(name: str, settings: dict[str, Any]) -> Method:
    """The method of this name.

    "a+b" is a Combination, whose settings hold each part's settings under the part's name.

    Raises:
      UserError: there is no such name or setting, or a value is outside of its range.
    """
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise UserError(f"There is no method {unknown[0]!r}; choose from {', '.join(METHODS)}.")
    check(f"Method {name}: scale", settings.get("scale", 1.0), SCALE)
    if len(parts) > 1:
        if len(set(parts)) < len(parts):
            raise UserError(f"{name!r} names a method twice; one of each can be combined.")
        settings = dict(settings)
        built = tuple((part, build(part, settings.pop(part, {}))) for part in parts)
        _check(name, settings, {"scale"})
        return Combination(built, **settings)
    _check(name, settings, {field.name for field in dataclasses.fields(METHODS[name])})
    missing = [
        f.name
        for f in dataclasses.fields(METHODS[name])
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in settings
    ]
    if missing:
        raise UserError(f"Method {name} needs {', '.join(missing)}.")
    # JSON has lists; a method must be hashable, so it has tuples.
    method: Method = METHODS[name](**{k: _tuples(v) for k, v in settings.items()})
    return method


# Settings that factor files of earlier versions do not name, with the values of their training.
_BEFORE: dict[str, dict[str, Any]] = {"adaptformer": {"layer_norm_eps": None}}


def build_stored(name: str, settings: dict[str, Any]) -> Method:
    """The method that a factor file describes; the file may be of an earlier version."""
    if "+" not in name:
        return build(name, {**_BEFORE.get(name, {}), **settings})
    parts = [part for part in name.split("+") if part in _BEFORE]
    return build(name, {**settings, **{p: {**_BEFORE[p], **settings.get(p, {})} for p in parts}})


def describe(method: Method) -> tuple[str, dict[str, Any]]:
    """Name and JSON-able settings from which `build` makes the method again."""
    if isinstance(method, Combination):
        described = [(name, describe(part)[1]) for name, part in method.parts]
        return "+".join(name for name, _ in described), {
            **dict(described),
            "scale": method.scale,
        }
    name = next((name for name, kind in METHODS.items() if type(method) is kind), None)
    if name is None:
        raise UserError(f"method is {method!r:.100}; expected one such as FacTTT(rank=16).")
    return name, dataclasses.asdict(method)


class UnknownSetting(UserError):
    """Raised for a setting that a method does not have."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _check(name: str, settings: dict[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(set(settings) - allowed):
        raise UnknownSetting(
            f"Method {name} has no setting {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(allowed)) or 'none'}."
        )
