"""Which of a config's values act in a cell, and where the config has them.

A method's settings win over the sweep's, those of a task over the method's, and a list of
candidates over the one value it is for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fact_jax.errors import UserError

# Settings of a run that change its result; a finished cell is only reused when they are equal.
RUN_SETTINGS = (
    *("variant", "gelu", "dtype", "precision", "image_size", "resize", "normalisation"),
    *("jpeg_quality", "protocol", "epochs", "warmup_epochs", "batch_size", "learning_rate"),
    *("weight_decay", "dropout_rate", "drop_path_rate", "optimizer", "decay_vectors", "augment"),
    *("mixup", "cutmix", "label_smoothing", "erasing", "eval_every", "train_limit", "eval_limit"),
    "mock_data",
)
# Settings of a run that a method may have for itself: those that are read per cell.
METHOD_SETTINGS = (
    *("epochs", "warmup_epochs", "learning_rate", "weight_decay", "dropout_rate"),
    *("drop_path_rate", "optimizer", "decay_vectors", "eval_every"),
)
# Lists of candidates in a method's settings, and what they are candidates for.
GRID = {
    "scales": "scale",
    "learning_rates": "learning_rate",
    "weight_decays": "weight_decay",
}


class Given(NamedTuple):
    """A value, and its place in the config, such as 'fact_tt.per_task.dtd.rank'."""

    value: Any
    path: str


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The values of one cell.

    Attributes:
      run: RUN_SETTINGS, each from where it acts.
      lists: those of GRID that are given.
      parts: for the method, and for each method of a combination, its own settings; those of a
        combination itself are under its name. 'scale' and 'published' are among them.
    """

    run: dict[str, Given]
    lists: dict[str, Given]
    parts: dict[str, dict[str, Given]]

    def acting(self) -> dict[str, Given]:
        """What the cell depends on, by name; a list of candidates hides the one value."""
        hidden = {GRID[several] for several in self.lists}
        settings = {**self.run, **self.lists}
        for part, own in self.parts.items():
            settings |= {f"{part}.{name}": given for name, given in own.items()}
            if "scale" in hidden:
                settings.pop(f"{part}.scale", None)
        return {name: given for name, given in settings.items() if name not in hidden}


def split_names(text: str | tuple[str, ...] | list[str]) -> list[str]:
    """Names from 'a,b' or ('a', 'b'), each once."""
    names = text.split(",") if isinstance(text, str) else text
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def resolve(config: ConfigDict, method: str, task: str) -> Resolved:
    """The values that act in the cells of a method and a task."""
    own = _settings_of(config, method, task)
    run = {name: Given(config[name], name) for name in RUN_SETTINGS}
    run |= {name: own.pop(name) for name in METHOD_SETTINGS if name in own}
    lists = {several: own.pop(several) for several in GRID if several in own}
    parts = {}
    if len(names := method.split("+")) > 1:
        parts = {name: _part(config, name, task, method) for name in names}
    return Resolved(run, lists, {method: own, **parts})


def _settings_of(config: ConfigDict, method: str, task: str) -> dict[str, Given]:
    """A method's settings, the task's own in the place of the others'."""
    settings = dict(_by_name(config.get(method), method))
    every_task = _by_name(settings.pop("per_task", None), f"{method}.per_task")
    by_task = _by_name(every_task.get(task), f"{method}.per_task.{task}")
    given = {name: Given(value, f"{method}.{name}") for name, value in settings.items()}
    given |= {
        name: Given(value, f"{method}.per_task.{task}.{name}") for name, value in by_task.items()
    }
    # None: the placeholders of configs/base.py.
    return {name: value for name, value in given.items() if value.value is not None}


def tasks_with_settings(config: ConfigDict, method: str) -> list[str]:
    """The tasks for which a method has settings of their own."""
    settings = _by_name(config.get(method), method)
    return list(_by_name(settings.get("per_task"), f"{method}.per_task"))


def _by_name(settings: Any, path: str) -> Mapping[str, Any]:
    """Settings by their names; UserError for a value in their place, but None."""
    if settings is None:
        return {}
    if isinstance(settings, ConfigDict):
        settings = settings.to_dict()
    if not isinstance(settings, dict):
        raise UserError(
            f"config.{path} is {settings!r:.200}; expected settings by their names, such as those "
            "of configs/quickstart.py."
        )
    return settings


def _part(config: ConfigDict, part: str, task: str, method: str) -> dict[str, Given]:
    """A part's own settings; those of the run are the combination's."""
    own = _settings_of(config, part, task)
    scales = own.pop("scales", None)
    if scales and "scale" not in own:
        values = scales.value if isinstance(scales.value, list | tuple) else (scales.value,)
        if len(values) > 1:
            raise UserError(
                f"config.{part} has several scales; in {method} it needs one, such as "
                f"--config.{part}.scales={values[0]!r},"
            )
        if values:
            own["scale"] = scales._replace(value=values[0])
    return {k: v for k, v in own.items() if k not in (*METHOD_SETTINGS, *GRID, "published")}
