"""Some epochs of training for rounded factors, with the settings of the sweep they came from."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from fact_jax.algebra.quantise import Bits
from fact_jax.cli.local import Sweep
from fact_jax.cli.terminal import Console
from fact_jax.errors import UserError
from fact_jax.files.atomic import write_atomically
from fact_jax.files.factors import TrainedTask
from fact_jax.files.load import load_factors
from fact_jax.report.records import read_config
from fact_jax.sweep.result import Result
from fact_jax.sweep.settings import CONSISTENCY_NUMBERS, RUN_SETTINGS, SETTINGS, SweepSettings
from fact_jax.sweep.store import Store
from fact_jax.tuning.registry import describe

# The peak rate of a finish, as a share of the training's. On val200, from factors trained on
# train800, a quarter was the best of 1, 1/2, 1/4 and 1/10 (benchmarks/accuracy/finish_rate.py).
RATE_SHARE = 0.25


class Origin(NamedTuple):
    """The sweep that a factor file came from: the result of its cell, and the last config."""

    result: Result
    config: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Origin":
        """The sweep in whose work directory a factor file lies.

        Raises UserError if the file lies in none, or its result cannot be read.
        """
        workdir = path.absolute().parent.parent
        in_workdir = path.absolute().parent.name == "factors" and (workdir / "results").is_dir()
        result = Store(workdir, create=False).read_record(path.stem) if in_workdir else None
        config = read_config(workdir) if result else None
        if result is None or result.learning_rate is None or config is None:
            raise UserError(
                f"{path} does not lie in the factors/ of a work directory with its result, which "
                "has the settings to go on training with. Leave out --finish_epochs, or give the "
                "file in its work directory."
            )
        return cls(result, config)

    def sweep(self, task: TrainedTask, epochs: int, bits: Bits | None, start: Path) -> ConfigDict:
        """The config of a sweep that goes on from a rounded task, as one cell.

        Its peak rate is RATE_SHARE of the training's, without a warm-up.
        """
        result, (method, settings) = self.result, describe(task.method)
        config = ConfigDict({name: field.default for name, field in SETTINGS.items()})
        of_sweep = {f.name for f in dataclasses.fields(SweepSettings)} & SETTINGS.keys()
        values = {name: self.config[name] for name in of_sweep if name in self.config}
        values |= {name: result.settings[name] for name in RUN_SETTINGS if name in result.settings}
        values |= {"tasks": result.task, "methods": method, "seeds": (result.seed,), "shots": ()}
        values |= {"epochs": epochs, "warmup_epochs": 0, "start_from": str(start)}
        values |= {"start_ranks": (), "round_epochs": (), "shared": ""}  # of the whole training
        values |= {
            "factor_bits": bits.factors if bits else 0,
            "head_bits": bits.head if bits else 0,
        }
        with config.ignore_type():
            config.update(values)
        rate = RATE_SHARE * (result.learning_rate or 0.0)  # `of` refuses a result without one
        numbers = {"learning_rate": rate, "weight_decay": result.weight_decay}
        chosen = {name: getattr(result, name) for name in CONSISTENCY_NUMBERS}
        numbers |= {name: value for name, value in chosen.items() if value is not None}
        for part in method.split("+") if "+" in method else ():
            config[part] = ConfigDict(settings.pop(part))
        config[method] = ConfigDict({**settings, **numbers})
        return config


def finish(path: Path, out: Path, epochs: int, bits: Bits | None, console: Console) -> Result:
    """Trains the rounded factors at `out` for some epochs more, and writes what comes out there.

    Args:
      path: the factor file that was rounded, in its work directory.
      out: the rounded factor file. The work directory of the new training lies beside it, so that
        the same command goes on after a stop.
      epochs: passes over the task's training images.
      bits: bits a number that the training computes with, and the file has; None: float32.
      console: where lines and bars go.
    """
    origin, task = Origin.of(path), load_factors(out)
    result, name = origin.result, describe(task.method)[0]
    content = out.read_bytes()
    digest = hashlib.sha256(content + str((epochs, bits)).encode()).hexdigest()[:8]
    # A call with other settings has a work directory of its own.
    workdir = out.with_name(f"{out.stem}-finish-{digest}")
    cell = f"{result.task}-{name}-seed{result.seed}"
    start = workdir / "start"
    start.mkdir(parents=True, exist_ok=True)
    write_atomically(str(start / f"{cell}.safetensors"), content)
    config = origin.sweep(task, epochs, bits, start)
    (finished,) = Sweep(config, str(workdir), console, rerun=lambda cell: "").run()
    content = (epath.Path(workdir) / "factors" / f"{cell}.safetensors").read_bytes()
    write_atomically(str(out), content)
    console.print(
        f"{out}: {finished.accuracy:.1f} % on test after {epochs} epochs; {path.name} had "
        f"{result.accuracy:.1f} %."
    )
    return finished
