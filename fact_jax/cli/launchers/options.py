"""``--launcher=NAME`` and its settings, ``--launch.NAME=VALUE``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from fact_jax.cli.live import Bars
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.ranges import Range, Real, Whole, check
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.runner import Outcome
from fact_jax.sweep.store import Store
from fact_jax.text import say

LAUNCHERS = ("local", "ray", "slurm")


class Launched(Protocol):
    """Runs cells, here or elsewhere, as `fact_jax.sweep.runner.Runner` does."""

    def finished(self, cell: Cell) -> dict[str, Any] | None: ...
    def check_data(self, cells: list[Cell], results: dict[str, dict[str, Any]]) -> None: ...
    def describe(self, console: Console, cells: list[Cell]) -> None: ...
    def run(
        self, cells: list[Cell], results: dict[str, dict[str, Any]], only: list[str]
    ) -> Iterator[Outcome]: ...


# Of a config, a work directory, the bars that are told, and the names of cells (none: all).
Launch = Callable[[ConfigDict, Store, Bars, list[str]], AbstractContextManager[Launched]]


class Option(NamedTuple):
    """A setting: of which launchers, and its value where none is given."""

    type: type
    default: Any
    of: tuple[str, ...]


_BOTH = ("ray", "slurm")
OPTIONS = {
    "cpus": Option(int, None, _BOTH),  # cores of a task or job
    "gpus": Option(int, 0, _BOTH),  # of a task or job
    "memory": Option(float, None, _BOTH),  # GB of a task or job
    # How often what a lost node worked on is tried again (ray); how often a job that reached its
    # time limit is continued (slurm).
    "retries": Option(int, 20, _BOTH),
    "address": Option(str, "", ("ray",)),  # 'auto' or ray://..., '': a cluster on this machine
    "tpus": Option(int, 0, ("ray",)),  # chips of a task
    "jobs": Option(int, 1, ("slurm",)),
    "partition": Option(str, None, ("slurm",)),
    "account": Option(str, None, ("slurm",)),
    "time": Option(str, "4:00:00", ("slurm",)),  # limit of a job, as sbatch --time
    "parameters": Option(str, "", ("slurm",)),  # "qos=low constraint=a100": more of sbatch's
    "wait": Option(bool, True, ("slurm",)),  # and show results; False: submit and leave
    "cluster": Option(str, "slurm", ("slurm",)),  # 'local': as processes of this machine
}

_RANGES: dict[str, Range] = {
    **dict.fromkeys(("cpus", "jobs"), Whole(1)),
    **dict.fromkeys(("gpus", "tpus", "retries"), Whole(0)),
    "memory": Real(0),
}


def define_flags() -> None:
    """--launcher and --launch.NAME."""
    flags.DEFINE_enum(
        "launcher", "local", LAUNCHERS, "Where cells run: in this process, on Ray, under Slurm."
    )
    try:
        config_flags.DEFINE_config_dict(
            "launch",
            ConfigDict({name: config_dict.placeholder(o.type) for name, o in OPTIONS.items()}),
            "Settings of --launcher, as --launch.NAME=VALUE (docs/clusters.md). The names are "
            f"{', '.join(OPTIONS)}.",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # it reads the command line
        text = " ".join(str(error).split())
        say(f"error: --launch: {text}; its settings are {', '.join(OPTIONS)}.", error=True)
        sys.exit(2)


def chosen_options(launcher: str, given: ConfigDict) -> ConfigDict:
    """All settings of this launcher; UserError for one that belongs to another."""
    for name, value in given.items():
        if value is not None and launcher not in OPTIONS[name].of:
            own = [n for n, o in OPTIONS.items() if launcher in o.of]
            raise UserError(
                f"--launch.{name} is no setting of --launcher={launcher}, but of "
                f"{' and '.join(OPTIONS[name].of)}; "
                + (f"{launcher} has {', '.join(own)}." if own else f"{launcher} has none.")
            )
    options = ConfigDict(
        {
            name: option.default if given.get(name) is None else given[name]
            for name, option in OPTIONS.items()
            if launcher in option.of
        }
    )
    for name, allowed in _RANGES.items():
        if options.get(name) is not None:
            check(f"--launch.{name}", options[name], allowed)
    return options


def launcher(name: str, given: ConfigDict) -> Launch | None:
    """What runs cells elsewhere, with the settings that are given; None: they run here."""
    options = chosen_options(name, given)
    if name == "ray":
        from fact_jax.cli.launchers.on_ray import OnRay

        return functools.partial(OnRay, options)
    if name == "slurm":
        from fact_jax.cli.launchers.on_slurm import OnSlurm

        return functools.partial(OnSlurm, options)
    return None
