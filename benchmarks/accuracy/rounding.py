"""The cost of rounding: accuracy against rank from one training, by plain and weighted rounding.

    python -m benchmarks.rounding [--workdir DIR] [--ranks 12,8,4,2] [--images 256]

Trains the quickstart's FacT-TT (or takes what --workdir has of it), rounds its factors, and tests
them. Weighted rounding sees the first pictures of train800 without their labels. Nothing is chosen
here: the settings are the defaults of `fact_jax.algebra`, and the test split is only measured on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import cells
from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax import FacTTT, Predictor, load_factors, load_vit, normalise
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.moments import second_moments
from fact_jax.algebra.rounding import Rounded, round_to
from fact_jax.backbone.vit import ViT
from fact_jax.cli.local import run_sweep
from fact_jax.data import DataSettings, TaskData, get_task, open_task
from fact_jax.data.tasks import TEST, TRAIN
from fact_jax.files.factors import TrainedTask, to_bytes
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment
from fact_jax.tuning.method import count_parameters

BATCH = 64


class Tested(NamedTuple):
    """A trained task on its network, with its data."""

    model: ViT
    base: dict[str, Any]
    task: TrainedTask
    data: TaskData

    def images(self, split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalised images of a split, and their labels."""
        images, labels = self.data.load(split, limit)
        normalisation = self.task.metadata["normalisation"]
        return np.asarray(normalise(jnp.asarray(images), normalisation)), labels

    def accuracy(self, rounded: Rounded | None) -> float:
        """Top-1 accuracy on test in percent; None tests the task as it was trained."""
        task = self.task
        if rounded is not None:
            task = task._replace(method=rounded.method, factors=rounded.factors)
        images, labels = self.images(TEST)
        logits = Predictor(self.model, self.base, task, BATCH).logits(images)
        return 100 * float((logits.argmax(axis=1) == labels).mean())

    def rows(self, result: Result, ranks: list[int], pictures: int) -> Iterator[dict[str, Any]]:
        """A row for the trained task, and one for each rank and way of rounding."""
        method, config = self.task.method, self.model.config
        increments = Increments.of(method, self.task.factors, config)
        adaptation = method.adaptation(self.task.factors, config)
        images = self.images(TRAIN, pictures)[0]
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        left = Joint.of(increments).left
        moments = second_moments(self.model, self.base, adaptation, batches, left)
        exact = Rounded(method, self.task.factors, 0.0, 0.0, 0.0)
        plan = [("trained", exact)]
        for rank in ranks:
            target = FacTTT(rank, method.scale)
            plan.append(("plain", round_to(target, increments, config)))
            plan.append(("weighted", round_to(target, increments, config, moments)))
        for way, rounded in plan:
            trainable = {"factors": rounded.factors, "head": self.task.head}
            yield {
                "task": result.task,
                "seed": result.seed,
                "way": way,
                "rank": rounded.method.rank,  # type: ignore[attr-defined]
                "numbers": count_parameters(rounded.factors),
                "bytes": len(to_bytes(rounded.method, trainable, config, {})),
                "error": rounded.error,
                "bound": rounded.bound,
                "weighted_error": rounded.weighted_error,
                "accuracy": self.accuracy(None if way == "trained" else rounded),
            }


def with_losses(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the points that each loses against its trained task."""
    trained = {(r["task"], r["seed"]): r["accuracy"] for r in rows if r["way"] == "trained"}
    return [{**r, "lost": trained[r["task"], r["seed"]] - r["accuracy"]} for r in rows]


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as people read them."""
    shown = Table("task", "rounding", title="FacT-TT, accuracy on test", title_justify="left")
    for name in ("rank", "numbers", "error", "of outputs", "accuracy, %", "points lost"):
        shown.add_column(name, justify="right")
    for r in rows:
        weighted = "" if r["weighted_error"] is None else f"{r['weighted_error']:.3f}"
        texts = [str(r["rank"]), f"{r['numbers']:,}", f"{r['error']:.3f}", weighted]
        shown.add_row(r["task"], r["way"], *texts, f"{r['accuracy']:.1f}", f"{r['lost']:.1f}")
    return shown


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/rounding.json"))
    parser.add_argument("--workdir", default="runs/rounding")
    parser.add_argument("--ranks", default="12,8,4,2")
    parser.add_argument("--images", type=int, default=256, help="pictures of weighted rounding")
    cells.add_changes(parser, "seeds", "tasks", "epochs")
    args = parser.parse_args()
    config = quickstart.get_config()
    config.methods = "fact_tt"
    given = cells.change(config, args, "seeds", "tasks", "epochs")
    console = Console()
    results = run_sweep(config, args.workdir, console)
    rows = []
    for result in results:
        task = load_factors(Path(args.workdir) / "factors" / f"{result.cell}.safetensors")
        model, base = load_vit(config.variant, None, **task.forward_settings)
        settings = DataSettings(image_size=task.metadata["image_size"])
        tested = Tested(model, base, task, open_task(get_task(result.task), settings))
        rows += tested.rows(result, [int(r) for r in args.ranks.split(",")], args.images)
    rows = with_losses(rows)
    console.print(table(rows))
    record = {
        "command": f"python -m benchmarks.rounding{given}",
        "images": args.images,
        "rows": rows,
        "trained": results[0].environment,
        "environment": environment(),
    }
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
