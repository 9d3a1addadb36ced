"""A config's values, checked: those of the whole sweep, and those that act in a cell.

A method's settings win over the sweep's, those of a task over the method's, and a list of
candidates over the one value it is for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fact_jax.backbone.config import get_variant
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, Each, allowed_values, check
from fact_jax.sweep.settings import (
    GRID,
    METHOD_SETTINGS,
    RUN_SETTINGS,
    SETTINGS,
    RunSettings,
    SweepSettings,
)
from fact_jax.tuning import METHODS


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
        """Settings that the cell depends on, by name; a list of candidates hides the one value."""
        hidden = {GRID[several] for several in self.lists}
        settings = {**self.run, **self.lists}
        for part, of_part in self.parts.items():
            settings |= {f"{part}.{name}": given for name, given in of_part.items()}
            if "scale" in hidden:
                settings.pop(f"{part}.scale", None)
        return {name: given for name, given in settings.items() if name not in hidden}

    def check(self) -> None:
        """Raises UserError for a value without sense, named as the config has it."""
        for settings in (self.run, self.lists, *self.parts.values()):
            for name, given in settings.items():
                check_setting(given.path, given.value, name)


def check_setting(path: str, value: Any, name: str = "") -> None:
    """Raises UserError for a value that the setting at this place in the config cannot have.

    `name` is given where it is not the last of the path: a scale may come from 'scales'.
    """
    method, _, rest = path.partition(".")
    name = name or path.rpartition(".")[2]
    ranges = allowed_values(METHODS[method]) if rest and method in METHODS else {}
    if name in ranges or name == "scale":
        check(f"config.{path}", value, ranges.get(name, SCALE))
    elif name in SETTINGS:
        metadata = SETTINGS[name].metadata
        check(f"config.{path}", value, metadata["allowed"], metadata["what"])
    elif name in GRID:
        one = SCALE if name == "scales" else SETTINGS[GRID[name]].metadata["allowed"]
        check(f"config.{path}", value, Each(one), "to choose from on validation data")


def read_settings(sweep_config: ConfigDict) -> SweepSettings:
    """The settings of the whole sweep. Raises UserError for what is missing, or has no sense."""
    values = {}
    for name, field in SETTINGS.items():
        if name in sweep_config:
            values[name] = sweep_config[name]
            check_setting(name, values[name])
        elif not field.metadata.get("optional"):
            what = field.metadata["what"]
            raise UserError(f"The config has no {name} ({what}); begin with configs/base.py's.")
    run = RunSettings(**{name: values.pop(name) for name in RUN_SETTINGS})
    sweep = SweepSettings(**values, run=run)
    for name in ("tasks", "methods"):
        if not split_names(values[name]):
            choices = f"choose from {', '.join(METHODS)}" if name == "methods" else "name one"
            raise UserError(f"config.{name} is empty; {choices}.")
    if run.image_size % (patch_size := get_variant(run.variant).patch_size):
        raise UserError(
            f"config.image_size {run.image_size} is not a multiple of {run.variant}'s patch size "
            f"{patch_size}."
        )
    if sweep.attention == "cudnn" and run.dtype != "bfloat16":
        raise UserError(
            f"config.attention 'cudnn' computes in bfloat16, and config.dtype is {run.dtype!r}. "
            "Set config.dtype to 'bfloat16', or config.attention to 'xla'."
        )
    return sweep


def split_names(text: str | Sequence[str]) -> list[str]:
    """Names from 'a,b' or ('a', 'b'), each once."""
    names = text.split(",") if isinstance(text, str) else text
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def resolve(sweep_config: ConfigDict, method: str, task: str) -> Resolved:
    """The values that act in the cells of a method and a task."""
    settings = _settings_of(sweep_config, method, task)
    run = {name: Given(sweep_config[name], name) for name in RUN_SETTINGS}
    run |= {name: settings.pop(name) for name in METHOD_SETTINGS if name in settings}
    lists = {several: settings.pop(several) for several in GRID if several in settings}
    parts = {}
    if len(names := method.split("+")) > 1:
        parts = {name: _part(sweep_config, name, task, method) for name in names}
    return Resolved(run, lists, {method: settings, **parts})


def _settings_of(sweep_config: ConfigDict, method: str, task: str) -> dict[str, Given]:
    """A method's settings, the task's own in the place of the others'."""
    settings = dict(_by_name(sweep_config.get(method), method))
    every_task = _by_name(settings.pop("per_task", None), f"{method}.per_task")
    by_task = _by_name(every_task.get(task), f"{method}.per_task.{task}")
    single = {name for name, value in by_task.items() if value is not None}
    given = {
        name: Given(value, f"{method}.{name}")
        for name, value in settings.items()
        if GRID.get(name) not in single  # a task's single value wins over the method's list
    }
    given |= {
        name: Given(value, f"{method}.per_task.{task}.{name}") for name, value in by_task.items()
    }
    # None: the placeholders of configs/base.py.
    return {name: value for name, value in given.items() if value.value is not None}


def tasks_with_settings(sweep_config: ConfigDict, method: str) -> list[str]:
    """The tasks for which a method has settings of their own."""
    settings = _by_name(sweep_config.get(method), method)
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


def _part(sweep_config: ConfigDict, part: str, task: str, method: str) -> dict[str, Given]:
    """A part's settings; those of the run are the combination's."""
    settings = _settings_of(sweep_config, part, task)
    scales = settings.pop("scales", None)
    if scales and "scale" not in settings:
        values = scales.value if isinstance(scales.value, list | tuple) else (scales.value,)
        if len(values) > 1:
            raise UserError(
                f"config.{part} has several scales; in {method} it needs one, such as "
                f"--config.{part}.scales={values[0]!r},"
            )
        if values:
            settings["scale"] = scales._replace(value=values[0])
    return {k: v for k, v in settings.items() if k not in (*METHOD_SETTINGS, *GRID, "published")}
