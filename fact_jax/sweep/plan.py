"""From a config to the cells of a sweep."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fact_jax.data.tasks import FOLDER, VTAB, get_task
from fact_jax.errors import UserError
from fact_jax.training.recipe import Recipe
from fact_jax.tuning import METHODS, Method
from fact_jax.tuning.registry import build

# Settings of a run that change its result; a finished cell is only reused when they are equal.
RUN_SETTINGS = (
    "variant", "gelu", "dtype", "precision", "image_size", "resize", "normalisation",
    "jpeg_quality", "protocol", "epochs", "warmup_epochs", "batch_size", "learning_rate",
    "weight_decay", "dropout_rate", "drop_path_rate", "optimizer", "decay_vectors", "augment",
    "mixup", "cutmix", "label_smoothing", "erasing", "eval_every", "train_limit", "eval_limit",
    "mock_data",
)  # fmt: skip
# Those that a method's own settings may override: the ones that are read per cell.
METHOD_SETTINGS = (
    "epochs", "warmup_epochs", "learning_rate", "weight_decay", "dropout_rate", "drop_path_rate",
    "optimizer", "decay_vectors", "eval_every",
)  # fmt: skip
# Lists of candidates in a method's settings, and what they are candidates for.
GRID = {
    "scales": "scale",
    "learning_rates": "learning_rate",
    "weight_decays": "weight_decay",
}
PROTOCOLS = ("val", "paper")
POSITIVE = ("epochs", "batch_size", "eval_batch_size", "image_size")


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


def split_names(text: str | tuple[str, ...] | list[str]) -> list[str]:
    """Names from 'a,b' or ('a', 'b'), each once."""
    names = text.split(",") if isinstance(text, str) else list(text)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


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
    if config.protocol not in PROTOCOLS:
        raise UserError(f"protocol is {config.protocol!r}; expected one of {PROTOCOLS}.")
    for name in POSITIVE:
        if config[name] < 1:
            raise UserError(f"config.{name} is {config[name]}; expected 1 or more.")
    if config.trials_per_device < 0:
        raise UserError(
            f"config.trials_per_device is {config.trials_per_device}; expected 0 (as many as fit) "
            "or the most that one device may train together."
        )
    if not config.seeds:
        raise UserError("config.seeds is empty; give at least one, such as (42,).")
    if any(not isinstance(seed, int) for seed in config.seeds):
        raise UserError(
            f"config.seeds is {config.seeds}; expected whole numbers such as (0, 1, 2)."
        )
    cells = []
    methods = split_names(config.methods)
    if not methods:
        raise UserError(f"config.methods is empty; choose from {', '.join(METHODS)}.")
    for task in task_names(config):
        for name in methods:
            for seed in dict.fromkeys(config.seeds):
                cells.append(_cell(config, task, name, int(seed)))
    return cells


def _own_settings(config: ConfigDict, name: str, task: str) -> dict[str, Any]:
    """What the config says of a method, the task's own in the place of the others'."""
    own = config[name].to_dict() if name in config else {}
    own = {k: v for k, v in own.items() if v is not None}  # placeholders of configs/base.py
    own.update(own.pop("per_task", {}).get(task, {}))
    own.pop("published", None)
    return own


def _numbers(name: str, several: str, values: Any) -> tuple[float, ...]:
    """Each candidate once."""
    try:
        return tuple(dict.fromkeys(float(v) for v in values))
    except (TypeError, ValueError):
        raise UserError(
            f"config.{name}.{several} is {values!r}; expected numbers with commas between them."
        ) from None


def _cell(config: ConfigDict, task: str, name: str, seed: int) -> Cell:
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
    own = _own_settings(config, name, task)
    if len(parts) > 1:  # the parts' own settings; those of the run are the combination's
        for part in parts:
            settings = _own_settings(config, part, task)
            if len(scales := tuple(settings.pop("scales", ()))) > 1 and "scale" not in settings:
                raise UserError(
                    f"config.{part} has several scales; in {name} it needs one, such as "
                    f"--config.{part}.scales={scales[0]:g},"
                )
            if scales:
                settings.setdefault("scale", scales[0])
            others = (*METHOD_SETTINGS, *GRID)
            own[part] = {k: v for k, v in settings.items() if k not in others}
    run = {key: config[key] for key in RUN_SETTINGS}
    run.update({key: own.pop(key) for key in list(own) if key in METHOD_SETTINGS})
    if run["epochs"] < 1:
        raise UserError(f"config.{name}.epochs is {run['epochs']}; expected 1 or more.")
    values = {"scale": own.pop("scale", None), **run}
    grid = {
        field: _numbers(name, several, own.pop(several, ())) or (values[field],)
        for several, field in GRID.items()
    }
    try:
        method = build(name, own)
    except UserError as error:
        raise UserError(
            f"config.{name}: {error} In the place of the whole sweep's it may set "
            f"{', '.join((*METHOD_SETTINGS, *GRID))}."
        ) from error
    if grid["scale"] == (None,):
        grid["scale"] = (float(method.scale),)
    candidates = tuple(Candidate(*values) for values in itertools.product(*grid.values()))
    if run["protocol"] == "paper" and len(candidates) > 1:
        varied = next(several for several, field in GRID.items() if len(grid[field]) > 1)
        raise UserError(
            f"config.{name}.{varied} has {len(grid[GRID[varied]])} candidates, but protocol "
            f"'paper' chooses nothing on validation data: set one, such as "
            f"--config.{name}.{varied}=({grid[GRID[varied]][0]:g},)."
        )
    settings = {
        "task": task, "method": name, **own, "seed": seed, **run,
        **{several: list(grid[field]) for several, field in GRID.items()},
    }  # fmt: skip
    return Cell(task, name, method, candidates, seed, settings)
