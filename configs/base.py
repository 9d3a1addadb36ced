"""Settings of FacT's released code on VTAB-1K: ViT-B/16, 100 epochs of AdamW at 1e-3, batch 64.

Source: JieShibo/PETL-ViT, FacT/vtab.py. The protocol differs by default: 'val' chooses the scale
on val200, trains on all 1,000 images and reports the last epoch; 'paper' reports the best of ten
test evaluations, as the published numbers do.
`fact_jax/sweep/settings.py` has every setting with its default and its range.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fact_jax.ranges import OneOf
from fact_jax.sweep.settings import COMPARABLE, GRID, METHOD_SETTINGS, SETTINGS
from fact_jax.tuning import METHODS

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)  # those that are compared on val200
_WHOLE = ("warmup_epochs", "image_size")  # whole numbers that may be None
_TYPES = {name: type(f.default) for name, f in SETTINGS.items()} | dict.fromkeys(_WHOLE, int)


def method(name: str, **settings: Any) -> ConfigDict:
    """A method's `settings`, and places for all others that a command line may set.

    Settings that are given by task, or as a list of candidates, get no place: it would change
    nothing.
    """
    fields = dataclasses.fields(METHODS[name]) if name in METHODS else ()
    types = {f.name: type(f.default) for f in fields if f.default is not dataclasses.MISSING}
    types |= {setting: _TYPES[setting] for setting in METHOD_SETTINGS}
    types |= dict.fromkeys(GRID, tuple)
    decided = {GRID[several] for several in GRID if several in settings}
    decided |= {setting for task in settings.get("per_task", {}).values() for setting in task}
    places = {k: placeholder(kind) for k, kind in types.items() if k not in decided}
    return ConfigDict({**places, **settings})


def get_config() -> ConfigDict:
    config = ConfigDict({name: f.default for name, f in SETTINGS.items() if name != "shots"})
    config.warmup_epochs = placeholder(int)  # None: a tenth of the epochs, 10 at most
    config.image_size = placeholder(int)  # None: the ViT's own
    return config


def vtab(name: str, **settings: Any) -> ConfigDict:
    """VTAB-1K with one method. Settings that a method cannot have for itself are the sweep's."""
    config = get_config()
    config.update({key: settings.pop(key) for key in COMPARABLE if key in settings})
    config.methods = name
    config[name] = method(name, **settings)
    return config


def released(name: str) -> dict[str, dict[str, Any]]:
    """Settings by task, as a method's authors released them (`released.json` has the sources)."""
    rows = json.loads((Path(__file__).parent / "released.json").read_text())[name]["per_task"]
    as_tuples = lambda value: tuple(value) if isinstance(value, list) else value  # noqa: E731
    return {task: {k: as_tuples(v) for k, v in row.items()} for task, row in rows.items()}


def form(file: str, arg: str, forms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings that a config's argument names. Raises ValueError for an unknown one."""
    if arg not in forms:
        raise ValueError(f"{file}.py:{arg}: expected {OneOf(forms).one}.")
    return forms[arg]


def vpt_rates(base_rates: tuple[float, ...]) -> tuple[float, ...]:
    """VPT's learning rates: its base rates x batch / 256, with a batch of 64."""
    return tuple(rate * 64 / 256 for rate in base_rates)
