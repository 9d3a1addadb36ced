"""The cost of a cell, before it runs."""

from typing import NamedTuple

from fact_jax.backbone.config import ViTConfig
from fact_jax.data import Task, get_task
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Run, candidates
from fact_jax.tuning import Full, Linear
from fact_jax.tuning.method import SearchMethod


class Cost(NamedTuple):
    """Trainings, their epochs, images that are trained on, images that are predicted, FLOPs."""

    trainings: int
    epochs: int
    train_images: int
    test_images: int
    flops: float


def forward_flops(config: ViTConfig) -> float:
    """FLOPs (two a multiply-add) of the matrix products of one image's forward pass.

    Where the class token alone is read, the last block computes nothing but the keys and values for
    other tokens. An attention pooling head has keys and values of all patches and one query.
    """
    n, d = config.num_tokens, config.width
    mlp = (3 if config.mlp == "gated" else 2) * d * config.mlp_dim
    block = 2 * n * (4 * d * d + mlp) + 4 * n * n * d
    last = block
    if config.pooling == "class":
        last = 2 * n * 2 * d * d + 2 * (2 * d * d + mlp) + 4 * n * d
    patches = config.grid**2
    embedding = 2 * patches * 3 * config.patch_size**2 * d
    head = 0
    if config.pooling == "attention":
        head = 4 * patches * d * d + 4 * d * d + 4 * d * config.mlp_dim + 4 * patches * d
    return (config.depth - 1) * block + last + embedding + head


def cell_cost(cell: Cell, config: ViTConfig, task: Task | None = None) -> Cost:
    """An estimate: what the methods add to the frozen network's products (some percent) is left
    out, and few-shot splits are taken at their lists' sizes. `task` is the cell's with the sizes of
    its data, where these are not in the table; without them its images count as none.

    A training step takes two forward passes where the network is frozen, three where all of it
    moves, and one where only the head does. With consistency 'full' it makes all of them twice.
    """
    task, runs = task or get_task(cell.task), _runs(cell)
    measured = [run for run in runs if run.stage != "supernet"]
    predicted = sum(_size(task, run, "eval_split") for run in measured)
    trained = sum(run.epochs * _size(task, run, "split") for run in runs)
    if isinstance(m := cell.method, SearchMethod):
        later = max(m.population, m.mutations + m.crossovers)  # than the first generation
        tried = m.population + (m.generations - 1) * later
        predicted += tried * _size(task, runs[-1], "eval_split")
    if cell.settings.protocol == "paper" and (every := cell.settings.eval_every):
        more = -(-cell.settings.epochs // every) - 1  # evaluations before the last
        predicted += more * _size(task, runs[0], "eval_split")
    passes = {Full: 3, Linear: 1}.get(type(cell.method), 2)
    passes *= 2 if cell.settings.consistency == "full" else 1
    flops = forward_flops(config) * (passes * trained + predicted)
    return Cost(len(runs), sum(run.epochs for run in runs), trained, predicted, flops)


def epochs_of(cell: Cell) -> int:
    """Epochs of all trainings of a cell, and generations of its search."""
    generations = cell.method.generations if isinstance(cell.method, SearchMethod) else 0
    return sum(run.epochs for run in _runs(cell)) + generations


def _runs(cell: Cell) -> list[Run]:
    """The final training, those of the candidates, and the supernet's."""
    final = Run(cell, "final", cell.candidates[0])
    searches = isinstance(cell.method, SearchMethod)
    return [final, *candidates([cell]), *([final._replace(stage="supernet")] * searches)]


def _size(task: Task, run: Run, which: str) -> int:
    """Images of the split that a run trains on, or is measured on."""
    split, settings = getattr(run, which), run.cell.settings
    limit = settings.train_limit if which == "split" else settings.eval_limit
    size = task.expected_size(split)
    return min(size, limit) if limit else size


def seconds_per_flop(finished: list[tuple[Cost, Result]]) -> float | None:
    """Seconds per FLOP of the finished cells, given with their results; None without any."""
    flops = sum(cost.flops for cost, _ in finished)
    return sum(r.seconds["cell"] for _, r in finished) / flops if flops else None
