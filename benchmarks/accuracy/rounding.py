"""The cost of rounding: accuracy against rank from one training, by each way of rounding.

    python -m benchmarks.rounding [--seeds 0,1,2] [--ranks 12,8,4,2] [--images 256] \\
        [--finish_epochs 3] [--workdir DIR]

Trains the quickstart's FacT-TT (or takes what --workdir has of it), rounds its factors, and tests
them:

- `plain` and `weighted`: `fact-jax round --rank`, without and with pictures. Weighted rounding sees
  the first ones of train800, without their labels;
- `plain, finished` and `weighted, finished`: `fact-jax round --finish_epochs` goes on from these;
- `fresh`: the training of the quickstart at that rank, from the start.

Nothing is chosen here: the settings are the defaults of `fact_jax.algebra`, of a finish, and those
of the quickstart, whose rates were chosen for rank 16. The test split is only measured on. A mean
is over tasks, then over seeds, and its error is the standard error over the seeds' means. The
sweeps lie in folders of --workdir, and resume.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks.accuracy import cells
from benchmarks.common import option_parser, write_json
from configs import quickstart
from fact_jax import FacTTT, Predictor, load_factors, load_vit, normalise, save_factors
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.moments import second_moments
from fact_jax.algebra.rounding import Rounded, round_to
from fact_jax.backbone.vit import ViT
from fact_jax.cli.finish import finish
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.data import DataSettings, TaskData, get_task, open_task
from fact_jax.data.tasks import TEST, TRAIN
from fact_jax.files.factors import OF_THE_FILE, TrainedTask
from fact_jax.report.averages import Stat, average
from fact_jax.sweep.result import Result
from fact_jax.sweep.versions import environment
from fact_jax.tuning.method import count_parameters

BATCH = 64
TRAINED, FRESH = "trained", "fresh"
FINISHED = ", finished"
STATS = ("accuracy", "lost", "below_fresh")


class Row(NamedTuple):
    """The test of one task at one rank. `accuracy` is in %; errors are those of `Rounded`."""

    task: str
    seed: int
    way: str
    rank: int
    numbers: int
    bytes: int
    accuracy: float
    error: float | None = None
    bound: float | None = None
    weighted_error: float | None = None

    @classmethod
    def of(cls, result: Result, way: str, rank: int) -> "Row":
        """The row of a training."""
        size = result.factor_file_bytes
        return cls(result.task, result.seed, way, rank, result.num_factors, size, result.accuracy)


class Mean(NamedTuple):
    """The mean of a way and a rank over tasks and seeds, in % and in points.

    Attributes:
      lost: points below the trained task.
      below_fresh: points below the training at this rank from the start.
    """

    way: str
    rank: int
    accuracy: Stat
    lost: Stat
    below_fresh: Stat

    def as_json(self) -> dict[str, Any]:
        """The mean as an entry of the record."""
        stats = {name: stat._asdict() for name, stat in self._asdict().items() if name in STATS}
        return {**self._asdict(), **stats}


@dataclasses.dataclass(frozen=True)
class Tested:
    """A trained task on its network, with its data and its result."""

    model: ViT
    base: dict[str, Any]
    task: TrainedTask
    data: TaskData
    result: Result

    @classmethod
    def of(cls, result: Result, workdir: Path) -> "Tested":
        """The task of a result in a work directory."""
        task = load_factors(workdir / "factors" / f"{result.cell}.safetensors")
        model, base = load_vit(result.variant, None, **task.forward_settings)
        data = open_task(
            get_task(result.task), DataSettings(image_size=task.metadata["image_size"])
        )
        return cls(model, base, task, data, result)

    def images(self, split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalised images of a split, and their labels."""
        images, labels = self.data.load(split, limit)
        normalisation = self.task.metadata["normalisation"]
        return np.asarray(normalise(jnp.asarray(images), normalisation)), labels

    def accuracy(self, path: Path) -> float:
        """Top-1 accuracy of a factor file on test in %."""
        images, labels = self.images(TEST)
        logits = Predictor(self.model, self.base, load_factors(path), BATCH).logits(images)
        return 100 * float((logits.argmax(axis=1) == labels).mean())

    def roundings(self, ranks: list[int], pictures: int) -> Iterator[tuple[str, Rounded]]:
        """The task rounded to each rank, plainly and weighted by some pictures."""
        method, config = self.task.method, self.model.config
        increments = Increments.of(method, self.task.factors, config)
        adaptation = method.adaptation(self.task.factors, config)
        images = self.images(TRAIN, pictures)[0]
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        left = Joint.of(increments).left
        moments = second_moments(self.model, self.base, adaptation, batches, left)
        for rank in ranks:
            target = FacTTT(rank, method.scale)
            yield "plain", round_to(target, increments, config)
            yield "weighted", round_to(target, increments, config, moments)

    def save(self, rounded: Rounded, path: Path) -> None:
        """Writes the factor file of the task rounded."""
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {k: v for k, v in self.task.metadata.items() if k not in OF_THE_FILE}
        config = self.model.config
        save_factors(path, rounded.method, rounded.factors, self.task.head, config, **metadata)

    def row(self, way: str, rounded: Rounded, path: Path) -> Row:
        """The row of the task rounded, whose file is at `path`."""
        return Row(
            self.result.task,
            self.result.seed,
            way,
            rounded.method.rank,  # type: ignore[attr-defined]
            count_parameters(rounded.factors),
            path.stat().st_size,
            self.accuracy(path),
            rounded.error,
            rounded.bound,
            rounded.weighted_error,
        )


@dataclasses.dataclass(frozen=True)
class Study:
    """The work directory and the options of a run."""

    workdir: Path
    ranks: list[int]
    pictures: int
    finish_epochs: int
    console: Console

    def rows(self, result: Result) -> Iterator[Row]:
        """The rows of a trained task and of what it is rounded to."""
        tested = Tested.of(result, self.workdir)
        path = tested.task.path
        exact = Rounded(tested.task.method, tested.task.factors, 0.0, 0.0, 0.0)
        yield tested.row(TRAINED, exact, path)
        for way, rounded in tested.roundings(self.ranks, self.pictures):
            rank = rounded.method.rank  # type: ignore[attr-defined]
            out = self.workdir / "rounded" / f"{way}-{rank}" / path.name
            tested.save(rounded, out)
            yield tested.row(way, rounded, out)
            finished = finish(path, out, self.finish_epochs, None, self.console)
            yield Row.of(finished, way + FINISHED, rank)


def mean_of(values: dict[tuple[str, int], float]) -> Stat:
    """The mean of values by task and seed over the tasks, then over the seeds."""
    by_task: dict[str, dict[int, float]] = defaultdict(dict)
    for (task, seed), value in values.items():
        by_task[task][seed] = value
    mean = average(by_task, [list(by_task)])
    assert mean is not None
    return mean


def means_of(rows: list[Row]) -> list[Mean]:
    """The means of each way and rank, the largest rank first."""
    groups: dict[tuple[str, int], dict[tuple[str, int], float]] = defaultdict(dict)
    for row in rows:
        groups[row.way, row.rank][row.task, row.seed] = row.accuracy
    (trained,) = (group for (way, _), group in groups.items() if way == TRAINED)
    means = []
    for (way, rank), group in sorted(groups.items(), key=lambda item: -item[0][1]):
        fresh = groups.get((FRESH, rank), trained)
        lost, below = (
            mean_of({cell: before[cell] - accuracy for cell, accuracy in group.items()})
            for before in (trained, fresh)
        )
        means.append(Mean(way, rank, mean_of(group), lost, below))
    return means


def table(means: list[Mean]) -> Table:
    """The means as people read them."""
    shown = Table("rank", "way", title="FacT-TT, accuracy on test", title_justify="left")
    for name in ("accuracy, %", "points lost", "points below fresh"):
        shown.add_column(name, justify="right")
    for mean in means:
        stats = (mean.accuracy, mean.lost, mean.below_fresh)
        shown.add_row(str(mean.rank), mean.way, *(stat.text(2) for stat in stats))
    return shown


def main() -> None:
    parser = option_parser(__doc__, out=Path("benchmarks/results/rounding.json"))
    parser.add_argument("--workdir", default="runs/rounding")
    parser.add_argument("--ranks", default="12,8,4,2")
    parser.add_argument("--images", type=int, default=256, help="pictures of weighted rounding")
    parser.add_argument("--finish_epochs", type=int, default=3)
    cells.add_changes(parser, "seeds", "tasks", "epochs")
    args = parser.parse_args()
    config = quickstart.get_config()
    config.methods = "fact_tt"
    given = cells.change(config, args, "seeds", "tasks", "epochs")
    for name in ("ranks", "images", "finish_epochs"):
        if (value := getattr(args, name)) != parser.get_default(name):
            given += f" --{name} {value}"
    ranks, console = [int(r) for r in args.ranks.split(",")], Console()
    study = Study(Path(args.workdir), ranks, args.images, args.finish_epochs, console)
    results = run_sweep(config, args.workdir, console)
    rows = [row for result in results for row in study.rows(result)]
    for rank in ranks:
        config.fact_tt.rank = rank
        fresh = run_sweep(config, str(study.workdir / f"fresh-{rank}"), console)
        rows += [Row.of(result, FRESH, rank) for result in fresh]
    means = means_of(rows)
    console.print(table(means))
    record = {
        "command": f"python -m benchmarks.rounding{given}",
        "images": args.images,
        "finish_epochs": args.finish_epochs,
        "means": [mean.as_json() for mean in means],
        "rows": [row._asdict() for row in rows],
        "trained": results[0].environment,
        "environment": environment(),
    }
    write_json(args.out, record)
    console.print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
