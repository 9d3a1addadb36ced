"""The plan: cells of a sweep from its config."""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from fact_jax.backbone.config import ViTConfig, get_variant
from fact_jax.data import get_task
from fact_jax.data.catalog import check_skipping, expand_groups
from fact_jax.errors import UserError
from fact_jax.sweep.consistency import check_consistency
from fact_jax.sweep.ranks import check_ranks
from fact_jax.sweep.resolution import read_settings, resolve, split_names, tasks_with_settings
from fact_jax.sweep.settings import (
    CONSISTENCY_NUMBERS,
    GRID,
    METHOD_SETTINGS,
    SETTINGS,
    RunSettings,
)
from fact_jax.sweep.shared import LEARN, check_shared, shared_sha256
from fact_jax.sweep.start import check_start, start_sha256
from fact_jax.training.recipe import Recipe
from fact_jax.training.schedule import highest_share
from fact_jax.tuning import METHODS, Method
from fact_jax.tuning.method import SearchMethod, adaptation_shapes
from fact_jax.tuning.registry import UnknownSetting, build
from fact_jax.tuning.support import check_supported

# Settings of a result that files decide: the checksums of the weights, of the factors that training
# began with, and of those that tasks share.
OF_FILES = ("weights_sha256", "start_sha256", "shared_sha256")
# Share of the peak below which a schedule's highest rate gets a warning. 100 epochs reach 98 %.
NEAR_PEAK = 0.75


class Candidate(NamedTuple):
    """The numbers that are chosen on validation data, where there is a choice.

    Those of consistency are None in a training without it.
    """

    scale: float
    learning_rate: float
    weight_decay: float
    consistency_weight: float | None = None
    consistency_noise: float | None = None

    @property
    def given(self) -> list[float]:
        """The numbers that the training has."""
        return [number for number in self if number is not None]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a task, a method with its settings, a seed.

    With several `candidates` the 'val' protocol chooses on the validation split. `method_settings`
    are what the config has for the method, JSON-able; its other fields have their defaults.
    `together` are the tasks that learn a dictionary with this one, it among them.
    """

    task: str
    method_name: str
    method: Method
    candidates: tuple[Candidate, ...]
    seed: int
    settings: RunSettings
    method_settings: dict[str, Any]
    together: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method_name}-seed{self.seed}"

    @property
    def all_settings(self) -> dict[str, Any]:
        """All numbers and names that the result depends on, except the weights."""
        return {
            **{"task": self.task, "method": self.method_name, **self.method_settings},
            **{"seed": self.seed, **self.settings.stored()},
            **({"together": list(self.together)} if self.together else {}),
            **self._lists,
        }

    @property
    def _lists(self) -> dict[str, list[float]]:
        """The values of the candidates, by the lists' names in a config.

        Earlier versions had no lists for the numbers of consistency; those are left out where they
        say no more than the run's settings.
        """
        lists = {
            several: list(dict.fromkeys(getattr(c, name) for c in self.candidates))
            for several, name in GRID.items()
        }
        for name in CONSISTENCY_NUMBERS:
            if lists[f"{name}s"] in ([None], [getattr(self.settings, name)]):
                del lists[f"{name}s"]
        return lists

    @property
    def as_stored(self) -> dict[str, Any]:
        """The settings as they are read back from a result, with lists for tuples."""
        stored: dict[str, Any] = json.loads(json.dumps(self.all_settings))
        return stored

    def stored_settings(self, weights_sha256: str) -> dict[str, Any]:
        """The `settings` of a result: all that it depends on."""
        stored = {**self.as_stored, "weights_sha256": weights_sha256}
        if self.start is not None:
            stored["start_sha256"] = start_sha256(self.start)
        if self.dictionary is not None:
            stored["shared_sha256"] = shared_sha256(self.dictionary)
        return stored

    @property
    def dictionary(self) -> Path | None:
        """The file of the factors that it shares, if there is one."""
        shared = self.settings.shared
        return Path(shared).expanduser() if shared not in ("", LEARN) else None

    @property
    def start(self) -> Path | None:
        """The factor file that training begins with, if any."""
        folder = self.settings.start_from
        return Path(folder).expanduser() / f"{self.name}.safetensors" if folder else None

    @property
    def recipe(self) -> Recipe:
        names = (f.name for f in dataclasses.fields(Recipe))
        return Recipe(**{name: getattr(self.settings, name) for name in names})

    def label(self, candidate: Candidate) -> str:
        """'scale=0.1' and so on: what the candidates differ in."""
        return ", ".join(
            f"{name}={value:g}"
            for name, value, *several in zip(
                Candidate._fields, candidate, *self.candidates, strict=True
            )
            if len(set(several)) > 1
        )


def task_names(tasks: str | Sequence[str], shots: Sequence[int] = ()) -> list[str]:
    """The tasks that a config names, groups such as 'all' (VTAB-1K's 19) or 'offline' among them;
    each at all of its `shots`, if it has any. UserError on an unknown name."""
    names = expand_groups(split_names(tasks))
    if shots:
        names = [f"{name}_{k}shot" for name in names for k in dict.fromkeys(shots)]
    for name in names:
        get_task(name)
    return names


def make_plan(sweep_config: ConfigDict) -> list[Cell]:
    """All cells, task by task. Raises UserError for settings that make no sense."""
    sweep = read_settings(sweep_config)
    tasks, methods = task_names(sweep.tasks, sweep.shots), split_names(sweep.methods)
    for name in methods:
        _check_method(sweep_config, name)
    for name in sweep_config:
        if name not in SETTINGS and not METHODS.keys() >= set(str(name).split("+")):
            near = difflib.get_close_matches(str(name), [*SETTINGS, *METHODS], n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"The config has {name!r}, which is no setting and no method.{guess}")
    plain = [task for task in tasks if not get_task(task).few_shot]
    if sweep.run.augment and plain:
        raise UserError(
            f"config.augment is True, but {plain[0]} is no few-shot task: only those have "
            "augmented views. Set it to False."
        )
    # A directory that is not here may be where a launcher's copies run.
    data_dir = epath.Path(sweep.data_dir).expanduser()
    if sweep.skip_damaged and (not sweep.data_dir or data_dir.exists()):
        for name in tasks:
            check_skipping(get_task(name), sweep.data)
    return _together(
        [
            _cell(sweep_config, task, name, int(seed))
            for task in tasks
            for name in methods
            for seed in dict.fromkeys(sweep.seeds)
        ]
    )


def _together(cells: list[Cell]) -> list[Cell]:
    """The cells, each with the tasks that it learns a dictionary with."""
    return [
        dataclasses.replace(
            cell,
            together=tuple(
                other.task
                for other in cells
                if (other.method_name, other.seed, other.settings.shared)
                == (cell.method_name, cell.seed, LEARN)
            ),
        )
        if cell.settings.shared == LEARN
        else cell
        for cell in cells
    ]


def chosen(cells: list[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells of these names, without any all. Raises UserError for a name that none has."""
    if unknown := set(names) - {cell.name for cell in cells}:
        raise UserError(
            f"--cells: {min(unknown)!r} is not a cell of this sweep, which has {cells[0].name} to "
            f"{cells[-1].name}; --dry_run shows them all."
        )
    return [cell for cell in cells if not names or cell.name in names]


def _check_method(sweep_config: ConfigDict, name: str) -> None:
    """UserError for a method that is unknown, or that this config has no settings for."""
    parts = name.split("+")
    if unknown := [part for part in parts if part not in METHODS]:
        raise UserError(
            f"Unknown method {unknown[0]!r} in config.methods; choose from {', '.join(METHODS)}, "
            "several with + between them being one."
        )
    if absent := [part for part in parts if part not in sweep_config]:
        raise UserError(
            f"config.methods has {absent[0]!r}, but this config has no settings for it, only for "
            f"{', '.join(m for m in METHODS if m in sweep_config)}. configs/compare.py:vtab has "
            "those of all methods but noah_subnet, whose are in configs/noah.py:released."
        )
    for part in {name, *parts}:
        for task in tasks_with_settings(sweep_config, part):
            try:
                get_task(str(task))
            except UserError as error:
                raise UserError(f"config.{part}.per_task: {error}") from error


def _cell(sweep_config: ConfigDict, task: str, name: str, seed: int) -> Cell:
    resolved = resolve(sweep_config, name, task)
    resolved.check()
    parts = {
        part: {key: given.value for key, given in settings.items() if key != "published"}
        for part, settings in resolved.parts.items()
    }
    method_settings = parts.pop(name)
    scale = method_settings.pop("scale", None)
    method_settings |= parts  # of a combination
    run = {key: given.value for key, given in resolved.run.items()}
    method = _method(name, method_settings)
    vit = get_variant(run["variant"])
    check_supported(method, vit, f"config.variant is {run['variant']!r}. ")
    if isinstance(method, SearchMethod):
        _check_search(f"config.{name}", method, vit)
    default = {"scale": float(method.scale) if scale is None else scale, **run}
    grid = {
        field: tuple(dict.fromkeys(map(float, resolved.lists[several].value)))
        if several in resolved.lists
        else (default[field],)
        for several, field in GRID.items()
    }
    if not run["consistency"]:
        grid |= dict.fromkeys(CONSISTENCY_NUMBERS, (None,))
    candidates = tuple(Candidate(*values) for values in itertools.product(*grid.values()))
    settings = RunSettings(**run)
    _check_run(f"config.{name}", method, vit, settings, grid)
    return Cell(task, name, method, candidates, seed, settings, method_settings)


def _check_run(
    where: str,
    method: Method,
    vit: ViTConfig,
    settings: RunSettings,
    grid: dict[str, tuple[float, ...]],
) -> None:
    """UserError if a method, called `where` in the config, cannot train with these settings."""
    try:
        adaptation_shapes(method, vit)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    varied = {several: grid[field] for several, field in GRID.items() if len(grid[field]) > 1}
    if settings.protocol == "paper":
        for several, values in varied.items():
            raise UserError(
                f"{where}.{several} has {len(values)} candidates, but protocol 'paper' chooses "
                "nothing on validation data: set one, such as "
                f"--{where}.{several}='({values[0]:g},)'"
            )
    if settings.shared:
        check_shared(where, method, varied, settings)
    if settings.consistency:
        check_consistency(where, method, vit, settings)
    if settings.start_ranks or settings.round_epochs:
        check_ranks(where, method, vit, settings, grid)
    if settings.start_from:
        check_start(where, method, varied)
    if settings.factor_bits and isinstance(method, SearchMethod):
        raise UserError(
            f"{where}.factor_bits is {settings.factor_bits}, and {type(method).__name__} trains "
            "more numbers than its file has, so few bits would not be those that were measured. "
            f"Set {where}.factor_bits to 0, or train the architecture that was found, as "
            "noah_subnet."
        )


def _check_search(where: str, method: SearchMethod, vit: ViTConfig) -> None:
    """UserError if a search has no architecture to find in this ViT."""
    try:
        depth, width = min(method.depths_of(vit)), min(method.widths)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    row = [width] * depth + [0] * (vit.depth - depth)
    if (least := method.count([row] * len(method.families), vit)) > method.limit:
        raise UserError(
            f"{where}.limit is {method.limit}, but the smallest architecture has {least:,} "
            "numbers. Raise the limit, or give smaller widths or depths."
        )


def schedule_warning(sweep_config: ConfigDict, cells: Sequence[Cell]) -> str:
    """A sentence on the cells whose learning rate never comes near its peak; empty without any."""
    cold = {}
    for cell in cells:
        warmup, peak = cell.settings.warmup_epochs, cell.candidates[0].learning_rate
        schedules = [(peak, cell.settings.epochs)]
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
        resolve(sweep_config, cell.method_name, cell.task).run["warmup_epochs"].path: None
        for cell, *_ in cold.values()
    }
    return (
        f"Warning: the learning rate of {cell.name}{others} never comes near its peak: at most "
        f"{100 * share:.2g} % of it in {epochs} epochs with {warmup} of warm-up, which begins one "
        "epoch late, as in the released code. Train longer, or set "
        f"{' '.join(f'--config.{path}=0' for path in paths)}."
    )


def _method(name: str, settings: dict[str, Any]) -> Method:
    try:
        return build(name, settings)
    except UnknownSetting as error:
        raise UserError(
            f"config.{name}: {error} In the place of the whole sweep's it may set "
            f"{', '.join((*METHOD_SETTINGS, *GRID))}."
        ) from error
    except UserError as error:
        raise UserError(f"config.{name}: {error}") from error
