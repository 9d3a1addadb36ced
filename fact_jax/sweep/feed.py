"""The data of a sweep's runs, stacked on the devices."""

from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from fact_jax.data import Examples, Task, TaskData, get_task, open_task
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.runs import Run
from fact_jax.sweep.settings import SweepSettings
from fact_jax.training.mesh import stack
from fact_jax.training.trial import TrainSet, train_set

T = TypeVar("T")
VTAB_TRAIN_SIZE = 1000


class Feed:
    """Opens tasks, reads their train splits, and stacks those of runs that train together."""

    def __init__(self, sweep: SweepSettings):
        self._settings = sweep.data
        self._data: dict[str, TaskData] = {}
        self._splits: dict[tuple[str, str], Examples] = {}
        self._stacked: tuple[list[Any], TrainSet, list[int]] | None = None

    def data(self, task: str) -> TaskData:
        """The opened task; UserError if its data are missing."""
        if task not in self._data:
            self._data[task] = open_task(get_task(task), self._settings)
        return self._data[task]

    def task(self, name: str) -> Task:
        """The task, with the classes and sizes that its data have."""
        return self.data(name).task

    def stack(
        self, runs: list[Run], size: int, mesh: Mesh, padded_classes: int = 0
    ) -> tuple[TrainSet, list[int]]:
        """The runs' train splits as a stack of `size`, padded by the last one's, and the number of
        images of each run. Only the last stack is kept."""
        names = [size, *((run.cell.task, run.split) for run in runs)]
        if self._stacked is None or self._stacked[0] != names:
            self._stacked = None
            splits = [self._split(run) for run in runs]
            capacity = max(self.capacity(run.cell) for run in runs)
            capacity = max(capacity, *(len(split.labels) for split in splits))
            sets = [
                train_set(*split, self.task(run.cell.task).num_classes, capacity, padded_classes)
                for run, split in zip(runs, splits, strict=True)
            ]
            if runs[0].cell.settings.augment:
                # Now and not in the first epoch: mock data take the place of the file system while
                # they are read, and Orbax works in a thread of its own from then on.
                for source in self._data.values():
                    source.forget()
                for run in runs:
                    self.data(run.cell.task).keep(run.split)
            numbers = [len(split.labels) for split in splits]
            if runs[0].cell.settings.augment:  # the plain images are not trained on
                sets = [s._replace(images=np.zeros_like(s.images[:, :1, :1])) for s in sets]
            self._stacked = names, stack(_padded(sets, size), mesh), numbers
        return self._stacked[1:]

    def views(self, runs: list[Run], epoch: int, data: TrainSet, mesh: Mesh) -> TrainSet:
        """`data`, a stack of these runs' splits, with an epoch's augmented views for images."""
        size, capacity = data.images.shape[:2]
        views = []
        for run in runs:
            # Others for every seed and epoch, and the same ones when a run is resumed.
            seed = np.random.SeedSequence([run.cell.seed, epoch]).generate_state(1)[0]
            source, limit = self.data(run.cell.task), run.cell.settings.train_limit
            images = source.views(run.split, int(seed), limit or None)
            views.append(np.pad(images, ((0, capacity - len(images)), (0, 0), (0, 0), (0, 0))))
        return data._replace(images=stack(_padded(views, size), mesh))

    def labels(self, run: Run) -> np.ndarray:
        """The labels of the run's train split [n] or [n, c]."""
        return self._split(run).labels

    def _split(self, run: Run) -> Examples:
        """The run's train split on the host; the last two are kept."""
        task, split, limit = run.cell.task, run.split, run.cell.settings.train_limit
        if (task, split) not in self._splits:
            while len(self._splits) >= 2:
                self._splits.pop(next(iter(self._splits)))
            self._splits[task, split] = self.data(task).load(split, limit or None)
        return self._splits[task, split]

    def capacity(self, cell: Cell) -> int:
        """Rows to pad a cell's train splits to, so that a few programs serve all sizes: VTAB's
        1,000 (of a folder all that is not for test, if that is more), for few-shot lists the next
        power of two."""
        task, limit = self.task(cell.task), cell.settings.train_limit
        if task.few_shot:
            number = task.expected_size(task.train_split(0, final=True))
            return 1 << ((min(number, limit) if limit else number) - 1).bit_length()
        number = max(task.sizes[task.train_split(0, final)] for final in (False, True))
        number = max(number, VTAB_TRAIN_SIZE)
        return min(limit, number) if limit else number


def _padded(items: list[T], size: int) -> list[T]:
    return [*items, *[items[-1]] * (size - len(items))]
