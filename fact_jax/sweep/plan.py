"""From a config to the cells of a sweep."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.tasks import FOLDER, VTAB, get_task
from fact_jax.errors import UserError
from fact_jax.sweep.resolution import (
    GRID,
    METHOD_SETTINGS,
    resolve,
    split_names,
    tasks_with_settings,
)
from fact_jax.sweep.settings import check_config, check_resolved
from fact_jax.training.recipe import Recipe
from fact_jax.training.schedule import highest_share
from fact_jax.tuning import METHODS, Method
from fact_jax.tuning.method import SearchMethod
from fact_jax.tuning.registry import build

# Of the released 100 epochs; a tenth of fewer, so that short schedules come to their peak, too.
WARMUP_EPOCHS = 10


# Share of the peak below which a schedule's highest rate gets a warning. 100 epochs reach 98 %.
NEAR_PEAK = 0.75


class Candidate(NamedTuple):
    """The numbers that are chosen on validation data, where there is a choice."""

    scale: float
    learning_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a task, a method with its settings, a seed.

    With several `candidates` the 'val' protocol chooses on the validation split. `settings` are the
    numbers and names that the result depends on, JSON-able.
    """

    task: str
    method_name: str
    method: Method
    candidates: tuple[Candidate, ...]
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method_name}-seed{self.seed}"

    @property
    def as_stored(self) -> dict[str, Any]:
        """The settings as they are read back from a result, with lists for tuples."""
        return json.loads(json.dumps(self.settings))

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{f.name: self.settings[f.name] for f in dataclasses.fields(Recipe)})

    def label(self, candidate: Candidate) -> str:
        """'scale=0.1' and so on: what the candidates differ in."""
        return ", ".join(
            f"{name}={value:g}"
            for name, value, *several in zip(
                Candidate._fields, candidate, *self.candidates, strict=True
            )
            if len(set(several)) > 1
        )


def task_names(config: ConfigDict) -> list[str]:
    """The tasks of the config, 'all' being VTAB-1K's 19; each at all of its `shots`, if it has any.
    UserError on an unknown name."""
    names = list(VTAB) if config.tasks == "all" else split_names(config.tasks)
    if shots := config.get("shots", ()):
        names = [f"{name}_{k}shot" for name in names for k in dict.fromkeys(shots)]
    for name in names:
        get_task(name)
    return names


def own_folders(config: ConfigDict) -> list[str]:
    """Those of the tasks whose classes are not known before their folder is read."""
    return [name for name in task_names(config) if get_task(name).builder == FOLDER]


def make_plan(config: ConfigDict) -> list[Cell]:
    """All cells, task by task. Raises UserError for settings that make no sense."""
    check_config(config)
    tasks, methods = task_names(config), split_names(config.methods)
    for name in methods:
        _check_method(config, name)
    plain = [task for task in tasks if not isinstance(get_task(task), FewShotTask)]
    if config.augment and plain:
        raise UserError(
            f"config.augment is True, but {plain[0]} is no few-shot task: only those have "
            "augmented views. Set it to False."
        )
    unskipped = [task for task in plain if get_task(task).builder != FOLDER]
    if config.get("skip_damaged", False) and unskipped:
        raise UserError(
            f"config.skip_damaged is True, but {unskipped[0]} is neither a folder nor a list of "
            "pictures: only from those can some be left out. Set it to False."
        )
    return [
        _cell(config, task, name, int(seed))
        for task in tasks
        for name in methods
        for seed in dict.fromkeys(config.seeds)
    ]


def _check_method(config: ConfigDict, name: str) -> None:
    """UserError for a method that is unknown, or that this config has no settings for."""
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise UserError(
            f"Unknown method {unknown[0]!r} in config.methods; choose from {', '.join(METHODS)}, "
            "several with + between them being one."
        )
    if absent := [part for part in parts if part not in config]:
        raise UserError(
            f"config.methods has {absent[0]!r}, but this config has no settings for it, only for "
            f"{', '.join(m for m in METHODS if m in config)}; configs/compare.py, "
            "configs/compare.py:vtab and configs/fewshot.py:all have those of all methods."
        )
    for part in {name, *parts}:
        for task in tasks_with_settings(config, part):
            try:
                get_task(str(task))
            except UserError as error:
                raise UserError(f"config.{part}.per_task: {error}") from error


def _cell(config: ConfigDict, task: str, name: str, seed: int) -> Cell:
    resolved = resolve(config, name, task)
    check_resolved(resolved)
    parts = {
        part: {key: given.value for key, given in own.items() if key != "published"}
        for part, own in resolved.parts.items()
    }
    own = parts.pop(name)
    scale = own.pop("scale", None)
    own |= parts  # of a combination
    run = {key: given.value for key, given in resolved.run.items()}
    if run["warmup_epochs"] is None:
        run["warmup_epochs"] = min(WARMUP_EPOCHS, run["epochs"] // WARMUP_EPOCHS)
    method = _method(name, own)
    default = {"scale": float(method.scale) if scale is None else scale, **run}
    grid = {
        field: _once(resolved.lists[several].value)
        if several in resolved.lists
        else (default[field],)
        for several, field in GRID.items()
    }
    candidates = tuple(Candidate(*values) for values in itertools.product(*grid.values()))
    if run["protocol"] == "paper" and len(candidates) > 1:
        varied = next(several for several, field in GRID.items() if len(grid[field]) > 1)
        raise UserError(
            f"config.{name}.{varied} has {len(grid[GRID[varied]])} candidates, but protocol "
            f"'paper' chooses nothing on validation data: set one, such as "
            f"--config.{name}.{varied}=({grid[GRID[varied]][0]:g},)."
        )
    settings = {
        **{"task": task, "method": name, **own, "seed": seed, **run},
        **{several: list(grid[field]) for several, field in GRID.items()},
    }
    return Cell(task, name, method, candidates, seed, settings)


def schedule_warning(config: ConfigDict, cells: Sequence[Cell]) -> str:
    """A sentence on the cells whose learning rate never comes near its peak; empty without any."""
    cold = {}
    for cell in cells:
        warmup, peak = cell.settings["warmup_epochs"], cell.candidates[0].learning_rate
        schedules = [(peak, cell.settings["epochs"])]
        if isinstance(cell.method, SearchMethod):
            schedules.append((cell.method.supernet_learning_rate, cell.method.supernet_epochs))
        for peak, epochs in schedules:
            share = highest_share(peak, epochs, warmup)
            if share < NEAR_PEAK:
                cold[cell.name] = (cell, share, epochs, warmup)
    if not cold:
        return ""
    cell, share, epochs, warmup = next(iter(cold.values()))
    others = f" and {len(cold) - 1} more" if len(cold) > 1 else ""
    paths = {
        resolve(config, cell.method_name, cell.task).run["warmup_epochs"].path: None
        for cell, *_ in cold.values()
    }
    return (
        f"Warning: the learning rate of {cell.name}{others} never comes near its peak: at most "
        f"{100 * share:.2g} % of it in {epochs} epochs with {warmup} of warm-up, which begins one "
        "epoch late, as in the released code. Train longer, or set "
        f"{' '.join(f'--config.{path}=0' for path in paths)}."
    )


def _once(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(float(value) for value in values))


def _method(name: str, settings: dict[str, Any]) -> Method:
    try:
        return build(name, settings)
    except UserError as error:
        raise UserError(
            f"config.{name}: {error} In the place of the whole sweep's it may set "
            f"{', '.join((*METHOD_SETTINGS, *GRID))}."
        ) from error
