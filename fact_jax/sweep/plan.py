"""From a config to the cells of a sweep."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from fact_jax.data.tasks import VTAB, get_task
from fact_jax.errors import UserError
from fact_jax.tuning import METHODS, Method

# Settings of a run that change its result; a finished cell is only reused when they are equal.
RUN_SETTINGS = (
    "variant", "gelu", "dtype", "precision", "image_size", "normalisation", "jpeg_quality",
    "protocol", "epochs", "warmup_epochs", "batch_size", "learning_rate", "weight_decay",
    "dropout_rate", "drop_path_rate", "eval_every", "train_limit", "eval_limit", "mock_data",
)  # fmt: skip
# Those that a method's own settings may override: the ones that are read per cell.
METHOD_SETTINGS = (
    "epochs", "warmup_epochs", "learning_rate", "weight_decay", "dropout_rate", "drop_path_rate",
    "eval_every",
)  # fmt: skip
PROTOCOLS = ("val", "paper")
POSITIVE = ("epochs", "batch_size", "eval_batch_size", "image_size")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a task, a method with its settings, a seed.

    `scales` are the candidates for the scale; with several, the 'val' protocol chooses on val200.
    `settings` are the numbers and names that the result depends on, JSON-able.
    """

    task: str
    method_name: str
    method: Method
    scales: tuple[float, ...]
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method_name}-seed{self.seed}"


def split_names(text: str | tuple[str, ...] | list[str]) -> list[str]:
    """Names from 'a,b' or ('a', 'b'), each once."""
    names = text.split(",") if isinstance(text, str) else list(text)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def task_names(config: ConfigDict) -> list[str]:
    """The tasks of the config, 'all' being VTAB-1K's 19; UserError on an unknown name."""
    names = list(VTAB) if config.tasks == "all" else split_names(config.tasks)
    for name in names:
        get_task(name)
    return names


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
    cells = []
    methods = split_names(config.methods)
    if not methods:
        raise UserError(f"config.methods is empty; choose from {', '.join(METHODS)}.")
    for task in task_names(config):
        for name in methods:
            for seed in dict.fromkeys(config.seeds):
                cells.append(_cell(config, task, name, int(seed)))
    return cells


def _cell(config: ConfigDict, task: str, name: str, seed: int) -> Cell:
    if name not in METHODS or name not in config:
        raise UserError(
            f"Unknown method {name!r} in config.methods; choose from {', '.join(METHODS)}, and "
            "give its settings as config.<method>."
        )
    own = config[name].to_dict()
    own.update(own.pop("per_task", {}).get(task, {}))
    own.pop("published", None)
    run = {key: config[key] for key in RUN_SETTINGS}
    run.update({key: own.pop(key) for key in list(own) if key in METHOD_SETTINGS})
    if run["epochs"] < 1:
        raise UserError(f"config.{name}.epochs is {run['epochs']}; expected 1 or more.")
    scales = tuple(dict.fromkeys(float(s) for s in own.pop("scales", ()))) or (
        float(own.get("scale", 1.0)),
    )
    if run["protocol"] == "paper" and len(scales) > 1:
        raise UserError(
            f"config.{name}.scales has {len(scales)} candidates, but protocol 'paper' chooses "
            f"nothing on validation data: set one, such as --config.{name}.scales=(1.0,)."
        )
    fields = {f.name for f in dataclasses.fields(METHODS[name])}
    if unknown := set(own) - fields:
        raise UserError(
            f"config.{name} has unknown settings {sorted(unknown)}; {name} takes {sorted(fields)} "
            f"and, in the place of the whole sweep's, {list(METHOD_SETTINGS)}."
        )
    own.pop("scale", None)
    method = METHODS[name](**own)
    settings = {"task": task, "method": name, **own, "scales": list(scales), "seed": seed, **run}
    return Cell(task, name, method, scales, seed, settings)
