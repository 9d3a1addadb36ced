"""The data of a sweep's runs, stacked on the devices."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.fewshot_data import FewShotData
from fact_jax.data.source import DataSettings, Examples, TaskData, open_task
from fact_jax.data.tasks import Task, get_task
from fact_jax.errors import UserError
from fact_jax.sweep.runs import Run
from fact_jax.training.mesh import stack
from fact_jax.training.trial import TrainSet, train_set

VTAB_TRAIN_SIZE = 1000


class Feed:
    """Opens tasks, reads their train splits, and stacks those of runs that train together."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self._data: dict[str, TaskData] = {}
        self._splits: dict[tuple[str, str], Examples] = {}
        self._stacked: tuple[list, TrainSet, list[int]] | None = None

    def data(self, task: str) -> TaskData:
        """The opened task; UserError if its data are missing."""
        if task not in self._data:
            c = self.config
            settings = DataSettings(
                data_dir=c.data_dir or None,
                image_size=c.image_size,
                jpeg_quality=c.jpeg_quality or None,
                resize=c.resize,
                cache_dir=c.data_cache or None,
                download=c.download,
                mock=c.mock_data,
                skip_damaged=c.get("skip_damaged", False),
            )
            self._data[task] = open_task(get_task(task), settings)
        return self._data[task]

    def task(self, name: str) -> Task:
        """The task, with the classes and sizes that its data have."""
        return self.data(name).task

    def stack(self, runs: list[Run], size: int, mesh: Mesh) -> tuple[TrainSet, list[int]]:
        """The runs' train splits as a stack of `size`, padded by the last one's, and the number of
        images of each run. Only the last stack is kept."""
        names = [size, *((run.cell.task, run.split) for run in runs)]
        if self._stacked is None or self._stacked[0] != names:
            self._stacked = None
            splits = [self._split(run.cell.task, run.split) for run in runs]
            capacity = max(self.capacity(run.cell.task) for run in runs)
            capacity = max(capacity, *(len(split.labels) for split in splits))
            sets = [
                train_set(*split, self.task(run.cell.task).num_classes, capacity)
                for run, split in zip(runs, splits, strict=True)
            ]
            if self.config.augment:
                # Now and not in the first epoch: mock data take the place of the file system while
                # they are read, and Orbax works in a thread of its own from then on.
                for source in self._data.values():
                    if isinstance(source, FewShotData):
                        source.forget()
                for run in runs:
                    self._augmentable(run.cell.task).keep(run.split)
            numbers = [len(split.labels) for split in splits]
            if self.config.augment:  # the plain images are not trained on
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
            source, limit = self._augmentable(run.cell.task), self.config.train_limit or None
            own = source.views(run.split, int(seed), limit)
            views.append(np.pad(own, ((0, capacity - len(own)), (0, 0), (0, 0), (0, 0))))
        images: jax.Array = stack(_padded(views, size), mesh)
        return data._replace(images=images)

    def _augmentable(self, task: str) -> FewShotData:
        source = self.data(task)
        if not isinstance(source, FewShotData):
            raise UserError(
                f"config.augment is True, but {task} is no few-shot task: only those have "
                "augmented views. Set it to False."
            )
        return source

    def _split(self, task: str, split: str) -> Examples:
        """The split on the host; the last two are kept."""
        if (task, split) not in self._splits:
            while len(self._splits) >= 2:
                self._splits.pop(next(iter(self._splits)))
            self._splits[task, split] = self.data(task).load(split, self.config.train_limit or None)
        return self._splits[task, split]

    def capacity(self, task: str) -> int:
        """Rows to pad a task's train splits to, so that a few programs serve all sizes: VTAB's
        1,000 (of a folder all that is not for test, if that is more), for few-shot lists the next
        power of two."""
        known, limit = self.task(task), self.config.train_limit
        if isinstance(known, FewShotTask):
            number = known.shots * known.num_classes
            return 1 << ((min(number, limit) if limit else number) - 1).bit_length()
        number = max(known.sizes[known.train_split(0, final)] for final in (False, True))
        return limit or max(number, VTAB_TRAIN_SIZE)


def _padded(items: list, size: int) -> list:
    return [*items, *[items[-1]] * (size - len(items))]
