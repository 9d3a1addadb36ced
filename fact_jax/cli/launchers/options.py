"""``--launcher=NAME`` and its settings, ``--launch.NAME=VALUE``."""

import functools
import sys
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from fact_jax.cli.launchers.copies import Follower
from fact_jax.cli.launchers.on_ray import OnRay
from fact_jax.cli.launchers.on_slurm import OnSlurm
from fact_jax.cli.local import Launch
from fact_jax.errors import UserError
from fact_jax.ranges import Range, Real, Whole, check
from fact_jax.text import say

LAUNCHERS = ("local", "ray", "slurm")


class Option(NamedTuple):
    """A setting of the launchers `of`: its value if none is given, and the values it may have."""

    type: type
    default: Any
    of: tuple[str, ...]
    range: Range | None = None


_BOTH = ("ray", "slurm")
OPTIONS = {
    "cpus": Option(int, None, _BOTH, Whole(1)),  # cores of a copy
    "gpus": Option(int, 0, _BOTH, Whole(0)),  # of a copy
    "memory": Option(float, None, _BOTH, Real(0)),  # GB of a copy
    # How often a lost copy is started again (ray); how often a job that reached its time limit is
    # continued (slurm).
    "retries": Option(int, 20, _BOTH, Whole(0)),
    "address": Option(str, "", ("ray",)),  # 'auto' or ray://..., '': a cluster on this machine
    "tpus": Option(int, 0, ("ray",), Whole(0)),  # chips of a copy
    "jobs": Option(int, 1, ("slurm",), Whole(1)),
    "partition": Option(str, None, ("slurm",)),
    "account": Option(str, None, ("slurm",)),
    "time": Option(str, "4:00:00", ("slurm",)),  # limit of a job, as sbatch --time
    "parameters": Option(str, "", ("slurm",)),  # "qos=low constraint=a100": more of sbatch's
    "wait": Option(bool, True, ("slurm",)),  # and show results; False: submit and leave
    "cluster": Option(str, "slurm", ("slurm",)),  # 'local': as processes of this machine
}


def define_flags() -> None:
    """Defines --launcher and --launch.NAME."""
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
    names = [name for name, option in OPTIONS.items() if launcher in option.of]
    options = ConfigDict({name: OPTIONS[name].default for name in names})
    for name, value in given.items():
        if value is None:
            continue
        allowed = OPTIONS[name].range
        if name not in names:
            raise UserError(
                f"--launch.{name} is no setting of --launcher={launcher}, but of "
                f"{' and '.join(OPTIONS[name].of)}; {launcher} has {', '.join(names) or 'none'}."
            )
        if allowed is not None:
            check(f"--launch.{name}", value, allowed)
        options[name] = value
    return options


def launcher(name: str, given: ConfigDict) -> Launch | None:
    """The launcher with the settings that are given; None if cells run in this process."""
    options = chosen_options(name, given)
    if name == "local":
        return None
    return functools.partial(Follower, OnRay if name == "ray" else OnSlurm, options)
