"""The 19-task VTAB-1K sweep in true shapes on synthetic pixels: where its wall time goes.

    python -m benchmarks.sweep [--epochs 100] [--test_fraction 1] [--dtype bfloat16]
        [--attention xla] [--remat none] [--out FILE]

This runs `experiments.vtab`'s own sweep (1,000 training images a task, heads of 397 classes, the
test sets' true sizes times `--test_fraction`), with random weights, and with random pixels that are
already decoded in the place of TFDS. Accuracies mean nothing. There is one candidate scale, so that
no task is trained to choose one: each trains once, on all its images, and is tested once. Wall
time is split into compiling (XLA's own events), training and evaluation (both without the
compiling), and the rest: checkpoints, splits copied to the devices, results. "input" is the part of
all that in which pixels were copied.
A shorter run also estimates what 100 epochs and whole test sets would take. So does a run that was
stopped by SIGTERM, from its finished cells.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, store
from benchmarks.network import network, random_images
from configs import tt_rank16
from fact_jax import ViT
from fact_jax.backbone.vit import init_base
from fact_jax.cli import stopping
from fact_jax.cli.local import run_sweep
from fact_jax.data import Examples
from fact_jax.data.tasks import TEST
from fact_jax.sweep import feed, trainer
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment

EPOCHS = 100  # of the paper
COMPILE = "/jax/core/compile/backend_compile_duration"


class Synthetic:
    """A stand-in for a TFDS task: random pixels, drawn once for all tasks."""

    class_names = None

    def __init__(self, task: Any, pool: np.ndarray, fraction: float, clock: Counter):
        self.task, self._pool, self._fraction, self._clock = task, pool, fraction, clock
        self.provenance = {
            "used_version": "synthetic",
            "fingerprint": task.name,
            "jpeg_quality": None,
        }

    def size(self, split: str, limit: int | None = None) -> int:
        size = self.task.sizes[split]
        size = max(1, round(size * self._fraction)) if split == TEST else size
        return size if limit is None else min(size, limit)

    def load(self, split: str, limit: int | None = None) -> Examples:
        parts = list(self.stream(split, 1000, limit))
        return Examples(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def stream(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Examples]:
        size = self.size(split, limit)
        for start in range(0, size, batch_size):
            began = time.perf_counter()
            count = min(batch_size, size - start)
            rows = np.arange(start, start + count) % len(self._pool)
            batch = Examples(self._pool[rows], (rows % self.task.num_classes).astype(np.int32))
            self._clock["input"] += time.perf_counter() - began
            yield batch


def run(config, fraction: float) -> tuple[dict[str, float], dict[str, int], list[dict]]:
    """Runs the sweep: seconds by part, compilations by program, its results."""
    clock: Counter = Counter()
    compiled: Counter = Counter()

    def listen(event: str, seconds: float, **kwargs) -> None:
        if event == COMPILE:
            clock["compile"] += seconds
            clock[str(kwargs.get("fun_name"))] += seconds
            compiled[str(kwargs.get("fun_name"))] += 1

    vit, pool = network(config), random_images(1000, config.image_size)
    base = init_base(vit, jax.random.key(0))
    jax.monitoring.register_event_duration_secs_listener(listen)
    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(trainer, "find_weights", return_value=Path("random")),
        mock.patch.object(trainer, "load_vit", return_value=(ViT(vit), base)),
        mock.patch.object(
            feed, "open_task", lambda task, settings: Synthetic(task, pool, fraction, clock)
        ),
    ):
        began = time.perf_counter()
        try:
            results = run_sweep(config, workdir, Console(quiet=True))
        except stopping.Terminated:
            stopping.STOPPING.over()
            paths = sorted(Path(workdir).glob("results/*.json"))
            results = [Result.from_json(path) for path in paths]
        clock["wall"] = time.perf_counter() - began
    jax.monitoring.unregister_event_duration_listener(listen)

    train, evaluate = (sum(r.seconds[part] for r in results) for part in ("train", "evaluate"))
    compiling = {name: clock[f"jit({name})"] for name in ("epoch", "merged", "predict")}
    parts = {
        "compile": clock["compile"],
        "train": train - compiling["epoch"],
        "evaluate": evaluate - compiling["merged"] - compiling["predict"],
    }
    # Inside of evaluation: while the device works the next pixels are read.
    parts |= {"other": clock["wall"] - sum(parts.values()), "wall": clock["wall"]}
    return parts | {"input": clock["input"]}, dict(compiled), results


def whole(seconds: dict[str, float], epochs: int, fraction: float, share: float) -> float:
    """Estimated seconds of 100 epochs with the whole test sets, from those of a shorter run, or of
    one that finished this share of its cells: then the rest is in "other", and that is left out."""
    train, evaluate = seconds["train"] * EPOCHS / epochs, seconds["evaluate"] / fraction
    return seconds["compile"] + (train + evaluate) / share + (seconds["other"] if share == 1 else 0)


def tell(content: dict[str, Any], console: Console) -> None:
    """Prints where the time went."""
    seconds, stack = content["seconds"], content["stack"]
    table = Table("part", "seconds", "share of wall")
    for part, value in seconds.items():
        table.add_row(part, f"{value:.1f}", f"{value / seconds['wall']:.1%}")
    console.print(table)
    done = f"{content['cells']} of {content['cells_planned']}"
    console.print(f"{done} cells in stacks of {stack['trials']} on {stack['mesh']}")
    console.print(f"compilations of the programs: {content['compilations']}")
    console.print(", ".join(f"{name}: {rate:.1f}" for name, rate in content["rates"].items()))
    estimate = content["estimated_seconds_of_100_epochs_and_whole_test_sets"]
    console.print(f"estimate for {EPOCHS} epochs and the whole test sets: {estimate:.0f} s")


def main() -> None:
    names = ("variant", "image_size", "batch", "dtype", "attention", "remat")
    parser = option_parser(__doc__, *names, image_size=224, batch=64)
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--train_limit", type=int, default=0, help="images; 0: all 1,000")
    parser.add_argument("--test_fraction", type=float, default=1.0)
    parser.add_argument("--eval_batch", type=int, default=256)
    parser.add_argument("--trials_per_device", type=int, default=0)
    a = parser.parse_args()
    config = tt_rank16.get_config()
    config.update(
        variant=a.variant,
        image_size=a.image_size,
        dtype=a.dtype,
        tasks=a.tasks,
        epochs=a.epochs,
        train_limit=a.train_limit,
        batch_size=a.batch,
        eval_batch_size=a.eval_batch,
        trials_per_device=a.trials_per_device,
        attention=a.attention,
        remat=a.remat,
    )
    config.fact_tt.scales = (1.0,)
    cells = len(make_plan(config))
    stopping.end_gently()
    seconds, compiled, results = run(config, a.test_fraction)
    if not results:
        raise SystemExit(f"Told to end before one of {cells} cells was finished.")
    programs = {name: compiled.get(f"jit({name})", 0) for name in ("epoch", "merged", "predict")}
    content = {
        "seconds": seconds,
        "compilations": programs,
        "stack": results[0].stack,
        "cells": len(results),
        "cells_planned": cells,
        "train_steps": sum((r.epochs_run or 0) * ((r.num_train or 0) // a.batch) for r in results),
        "test_images": sum(r.num_test or 0 for r in results),
    }
    content["rates"] = {
        "training images/s": content["train_steps"] * a.batch / seconds["train"],
        "test images/s": content["test_images"] / seconds["evaluate"],
    }
    estimate = whole(seconds, a.epochs, a.test_fraction, len(results) / cells)
    content["estimated_seconds_of_100_epochs_and_whole_test_sets"] = estimate
    tell(content, Console())
    a.candidate_scales = 1
    store(a, {**content, "environment": environment()})


if __name__ == "__main__":
    main()
