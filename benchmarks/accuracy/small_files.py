"""Points lost by factor files of few bits: rounded, finished by a few epochs, and trained as such.

    python -m benchmarks.small_files [--seeds 0,1,2] [--bits 8/8,4/4,4/1,2/1,1/1] \\
        [--ways finished,trained] [--workdir DIR] [--out FILE.json]

FacT-TT of the quickstart (rank 16, 20 epochs) on the three offline tasks in float32 comes first.
Then, for each number of bits of factors and head:

- `rounded`: the trained numbers quantised, nothing trained;
- `finished`: some epochs more, from the trained factors, with each step computing with the
  quantised numbers, as `fact-jax round --bits --finish_epochs` does;
- `trained`: the 20 epochs like that, from the beginning.

The trained ones have the quickstart's learning rates, the finished ones a quarter of them
(`benchmarks.finish_rate`); nothing was chosen for any number of bits. A row has the
mean over tasks and seeds of the points lost against float32, and the standard error of that mean
over its cells. Each part is a sweep in a folder of --workdir, which resumes.
"""

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax import Predictor, load_factors, load_vit, normalise, save_factors
from fact_jax.cli.finish import RATE_SHARE
from fact_jax.cli.local import run_sweep
from fact_jax.data import DataSettings, get_task, open_task
from fact_jax.report.averages import stat
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment

METHOD = "fact_tt"


def config_of(args: argparse.Namespace) -> ConfigDict:
    """The quickstart's config with FacT-TT alone, shortened as the options say."""
    config = quickstart.get_config()
    config.methods, config.seeds = METHOD, tuple(map(int, args.seeds.split(",")))
    if args.tasks:
        config.tasks = args.tasks
    if args.epochs:
        config.epochs = args.epochs
    return config


class Tests:
    """The tasks' test images, and the accuracy in % of factor files on them."""

    def __init__(self, config: ConfigDict):
        self.model, self.base = load_vit(config.variant)
        self._size, self._examples = config.image_size, {}

    def accuracy(self, path: Path) -> float:
        """Accuracy of a factor file on its task's test split."""
        task = load_factors(path)
        images, labels = self._read(task.metadata["task"])
        logits = Predictor(self.model, self.base, task, batch_size=256).logits(images)
        return 100 * float((logits.argmax(-1) == labels).mean())

    def _read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._examples:
            data = open_task(get_task(name), DataSettings(image_size=self._size))
            batches = list(data.stream("test", 256))
            images = jnp.asarray(np.concatenate([images for images, _ in batches]))
            labels = np.concatenate([labels for _, labels in batches])
            self._examples[name] = np.asarray(normalise(images, "imagenet")), labels
        return self._examples[name]


def rounded(results: list[Result], folder: Path, out: Path, bits: tuple[int, int]) -> list[Path]:
    """The factor files of a sweep at a few bits."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        task = load_factors(folder / f"{result.cell}.safetensors")
        path, model = out / f"{result.cell}.safetensors", load_vit(result.variant)[0]
        names = ("task", "protocol", "variant", "weights_sha256", "class_names")
        names += ("image_size", "normalisation", "jpeg_quality")
        more = {name: task.metadata[name] for name in names}
        save_factors(path, task.method, task.factors, task.head, model.config, bits, **more)
        paths.append(path)
    return paths


def row_of(
    how: str, bits: str, accuracies: list[float], before: list[Result], size: list[int]
) -> dict[str, Any]:
    """The points that each cell lost, their mean and its standard error, and the mean size."""
    lost = [result.accuracy - a for result, a in zip(before, accuracies, strict=True)]
    mean, error, _ = stat(lost)
    tasks = dict.fromkeys(result.task for result in before)
    return {
        "bits": bits,
        "how": how,
        "bytes": round(sum(size) / len(size)),
        "lost": mean,
        "error": error,
        "tasks": {
            task: stat([x for x, r in zip(lost, before, strict=True) if r.task == task])[0]
            for task in tasks
        },
        "cells": {r.cell: a for r, a in zip(before, accuracies, strict=True)},
    }


def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs all parts; the JSON of the result."""
    workdir, config = Path(args.workdir), config_of(args)
    before = run_sweep(config, str(workdir / "float32"), console)
    tests, rows = Tests(config), []
    for bits in args.bits.split(","):
        factor_bits, head_bits = map(int, bits.split("/"))
        folder = workdir / f"{factor_bits}-{head_bits}"
        paths = rounded(
            before, workdir / "float32" / "factors", folder / "rounded", (factor_bits, head_bits)
        )
        sizes = [path.stat().st_size for path in paths]
        rows.append(row_of("rounded", bits, [tests.accuracy(p) for p in paths], before, sizes))
        for how, changes in {
            "finished": {
                "start_from": str(workdir / "float32" / "factors"),
                "epochs": args.finish_epochs,
                "warmup_epochs": 0,
            },
            "trained": {},
        }.items():
            if how not in args.ways.split(","):
                continue
            changes |= {"factor_bits": factor_bits, "head_bits": head_bits}
            trained = config_of(args)
            trained.update(changes)
            if how == "finished":
                rates = [trained.fact_tt, *trained.fact_tt.per_task.values()]
                for settings in rates:
                    settings.learning_rate *= RATE_SHARE
            results = run_sweep(trained, str(folder / how), console)
            accuracies = [result.accuracy for result in results]
            sizes = [result.factor_file_bytes for result in results]
            rows.append(row_of(how, bits, accuracies, before, sizes))
    accuracies = [result.accuracy for result in before]
    sizes = [result.factor_file_bytes for result in before]
    return {
        "seeds": list(config.seeds),
        "epochs": config.epochs,
        "finish_epochs": args.finish_epochs,
        "float32": row_of("trained", "32/32", accuracies, before, sizes),
        "rows": rows,
        "environment": environment(),
    }


def print_table(record: dict[str, Any], console: Console) -> None:
    table = Table(title="Points lost against float32, top-1 on test", title_justify="left")
    for name in (
        "bits of factors / head",
        "how",
        "bytes",
        "lost ± s.e.",
        *record["rows"][0]["tasks"],
    ):
        table.add_column(name, justify="left" if name == "how" else "right")
    for row in record["rows"]:
        error = "" if row["error"] is None else f" ± {row['error']:.2f}"
        tasks = [f"{lost:.2f}" for lost in row["tasks"].values()]
        table.add_row(
            row["bits"], row["how"], f"{row['bytes']:,}", f"{row['lost']:.2f}{error}", *tasks
        )
    console.print(table)


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/small_files.json"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--bits", default="8/8,4/4,4/1,2/1,1/1", help="factors/head")
    parser.add_argument("--ways", default="finished,trained", help="besides rounded")
    parser.add_argument("--tasks", default="", help="empty: the quickstart's")
    parser.add_argument("--epochs", type=int, default=0, help="0: the quickstart's")
    parser.add_argument("--finish_epochs", type=int, default=10)
    parser.add_argument("--workdir", default="runs/small_files")
    args = parser.parse_args()
    console = Console()
    record = measure(args, console)
    print_table(record, console)
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
