"""Settings of FacT's released code on VTAB-1K: ViT-B/16, 100 epochs of AdamW at 1e-3, batch 64.

Source: JieShibo/PETL-ViT, FacT/vtab.py. The protocol differs by default: 'val' chooses the scale
on val200, trains on all 1,000 images and reports the last epoch; 'paper' reports the best of ten
test evaluations, as the published numbers do.
`fact_jax/sweep/settings.py` has every setting with its default and its range.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fact_jax.sweep.settings import GRID, METHOD_SETTINGS, SETTINGS
from fact_jax.tuning import METHODS

_TYPES = {name: type(f.default) for name, f in SETTINGS.items()} | {"warmup_epochs": int}


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
    return config
