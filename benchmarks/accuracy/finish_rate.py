"""The learning rate of a finish after rounding, chosen on validation images.

    python -m benchmarks.finish_rate [--tasks digits,fashion,location] [--workdir DIR] [--out FILE]

FacT-TT of the quickstart is trained on train800 and rounded from rank 16 to 8. The rounded factors
are trained for 3 epochs on train800, at shares of the training's peak rate, and measured on val200.
The test images are not read. `fact_jax.cli.finish.RATE_SHARE` is the share with the best mean.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax import FacTTT, save_factors
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.rounding import round_to
from fact_jax.sweep.plan import Cell, make_plan
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runs import Run, Trained
from fact_jax.sweep.stacks import RunStack
from fact_jax.sweep.trainer import Trainer
from fact_jax.sweep.versions import environment

SHARES = (1.0, 0.5, 0.25, 0.1)
RANK = 8


class Silent:
    """A progress that nobody sees."""

    def start(self, runs: list[Run], epochs: int) -> None: ...
    def epoch(self, done: int, losses: list[float], accuracies: list[float]) -> None: ...
    def note(self, text: str) -> None: ...
    def waiting(self) -> None: ...


def config_of(args: argparse.Namespace, **changes: Any) -> ConfigDict:
    """The quickstart's config with FacT-TT alone, and changes by their flattened names."""
    config = quickstart.get_config()
    config.methods, config.tasks = "fact_tt", args.tasks
    if args.epochs:
        config.epochs = args.epochs
    config.update_from_flattened_dict(changes)
    return config


def rounded(trainer: Trainer, cell: Cell, trained: Trained, folder: Path) -> None:
    """Writes the factors of a training, rounded, into a folder to start from."""
    config, classes = trainer.model.config, trainer.feed.task(cell.task).num_classes
    increments = Increments.of(cell.method, trained.trainable["factors"], config)
    result = round_to(FacTTT(RANK, cell.method.scale), increments, config)
    head = {name: x[..., :classes] for name, x in trained.trainable["head"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_factors(folder / f"{cell.name}.safetensors", result.method, result.factors, head, config)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each task: the accuracy on val200 in % before rounding, and by share."""
    workdir, config = Path(args.workdir), config_of(args)
    trainer = Trainer(read_settings(config), Silent())
    rows = []
    for cell in make_plan(config):
        run = Run(cell, "selection", cell.candidates[0])
        checkpoints = epath.Path(workdir / "checkpoints" / cell.name)
        (trained,) = RunStack(trainer, [run], 1).train(checkpoints)
        rounded(trainer, cell, trained, workdir / "rounded")
        rows.append({"task": cell.task, "trained": trained.accuracies[-1], "finished": {}})
    changes = {"start_from": str(workdir / "rounded"), "fact_tt.rank": RANK, "epochs": 3}
    for row, cell in zip(rows, make_plan(config_of(args, **changes, warmup_epochs=0)), strict=True):
        for share in SHARES:
            candidate = cell.candidates[0]
            candidate = candidate._replace(learning_rate=share * candidate.learning_rate)
            checkpoints = epath.Path(workdir / "checkpoints" / f"{cell.name}-{share}")
            (finished,) = RunStack(trainer, [Run(cell, "selection", candidate)], 1).train(
                checkpoints
            )
            row["finished"][str(share)] = finished.accuracies[-1]
    return rows


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/finish_rate.json"))
    parser.add_argument("--tasks", default="digits,fashion,location")
    parser.add_argument("--epochs", type=int, default=0, help="0: the quickstart's")
    parser.add_argument("--workdir", default="runs/finish_rate")
    args = parser.parse_args()
    rows, console = measure(args), Console()
    means = {str(s): float(np.mean([row["finished"][str(s)] for row in rows])) for s in SHARES}
    table = Table("share of the rate", *(row["task"] for row in rows), "mean")
    for share, mean in means.items():
        texts = [f"{row['finished'][share]:.1f}" for row in rows]
        table.add_row(share, *texts, f"{mean:.1f}")
    console.print(table)
    write_json(args.out, {"rows": rows, "means": means, "environment": environment()})
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
