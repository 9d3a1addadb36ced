"""Trains the cells of a group, stage by stage: selection, search, and the final training."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import jax
from etils import epath

from fact_jax.sweep.evolution import Space, check_state, search
from fact_jax.sweep.plan import Candidate, Cell
from fact_jax.sweep.record import store_result
from fact_jax.sweep.result import Result
from fact_jax.sweep.runs import Failure, Run, Trained, candidates
from fact_jax.sweep.stacks import RunStack
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer
from fact_jax.training.mesh import make_mesh
from fact_jax.training.trial import NonFiniteLoss
from fact_jax.tuning.method import SearchMethod

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


class Group:
    """Cells of one kind that train together, stacked up to `size`."""

    def __init__(self, store: Store, trainer: Trainer, cells: list[Cell], size: int):
        self.store, self.trainer, self.cells, self.size = store, trainer, cells, size
        self._directories: list[epath.Path] = []
        self._scores: dict[str, dict[Candidate, float]] = {cell.name: {} for cell in cells}
        self._errors: dict[str, NonFiniteLoss] = {}  # of cells that are not told of yet
        self._searches: dict[str, dict[str, Any]] = {}

    def run(self, finished: Collection[str]) -> Iterator[Result | Failure]:
        """Selects (where there is a choice), trains, evaluates and stores; yields each outcome.

        All cells are trained, also the finished ones: a stack costs the same, and a sweep that was
        stopped while it stored finds its checkpoints again.
        """
        started = time.perf_counter()
        finals = self._select()
        yield from self._failures(finished)
        if isinstance(self.cells[0].method, SearchMethod):
            finals = self._with_architectures(finals)
            yield from self._failures(finished)
        for trained in self._train(finals):
            name = trained.run.cell.name
            if name in finished:
                continue
            if trained.error is not None:
                yield Failure(name, trained.error)
            else:
                yield self._stored(trained, (time.perf_counter() - started) / len(self.cells))
        self.clean()

    def _select(self) -> list[Run]:
        """The final runs: of each cell the candidate that is best on validation data, the first of
        equals. A candidate that diverges is not chosen."""
        for trained in self._train(candidates(self.cells)):
            name = trained.run.cell.name
            if trained.error is None:
                if not math.isnan(score := trained.accuracies[-1]):  # a measure may be undefined
                    self._scores[name][trained.run.candidate] = score
            else:
                self._errors[name] = trained.error
        finals = []
        for cell in self.cells:
            scores = self._scores[cell.name]
            if not scores and len(cell.candidates) > 1 and cell.name not in self._errors:
                self.trainer.progress.note(
                    f"{cell.name}: the measure is not defined on its validation data, so the first "
                    "candidate is taken."
                )
            if len(cell.candidates) == 1 or scores or cell.name not in self._errors:
                best = max(scores, key=scores.__getitem__, default=cell.candidates[0])
                finals.append(Run(cell, "final", best))
                self._errors.pop(cell.name, None)
        return finals

    def _with_architectures(self, finals: list[Run]) -> list[Run]:
        """The final runs with the best architecture that is found in each cell's supernet."""
        chosen, with_choice = {run.cell.name: run for run in finals}, []
        for trained in self._train([run._replace(stage="supernet") for run in finals]):
            name = trained.run.cell.name
            if trained.error is None:
                self._searches[name] = self._search(trained)
                with_choice.append(chosen[name]._replace(choice=self._searches[name]["best"]))
            else:
                self._errors[name] = trained.error
        return with_choice

    def _failures(self, finished: Collection[str]) -> Iterator[Failure]:
        """Yields the errors of cells that have no final run."""
        for name in list(self._errors):
            error = self._errors.pop(name)
            if name not in finished:
                yield Failure(name, error)

    def _stored(self, trained: Trained, seconds: float) -> Result:
        cell = trained.run.cell
        grid = cell.candidates if len(cell.candidates) > 1 else ()
        return store_result(
            self.store,
            self.trainer,
            trained,
            selection={cell.label(c): self._scores[cell.name].get(c) for c in grid},
            searched=self._searches.get(cell.name),
            seconds=seconds,
        )

    def clean(self) -> None:
        """Removes the checkpoints if all of the cells' results are there. Others, that failed or
        were not asked for, would train anew without them."""
        stored = (self.store.result_path(cell.name).exists() for cell in self.cells)
        if jax.process_index() == 0 and all(stored):
            for directory in self._directories:
                directory.rmtree(missing_ok=True)
                with contextlib.suppress(OSError, ValueError):  # not empty
                    directory.parent.rmdir()

    def _train(self, runs: list[Run]) -> Iterator[Trained]:
        for part in batches(runs, self.size):
            yield from RunStack(self.trainer, part, self.size).train(self._directory(part))

    def _search(self, trained: Trained) -> dict[str, Any]:
        """The best architecture of a trained supernet, and how it was found. The directory holds
        the generations that are done."""
        cell, config = trained.run.cell, self.trainer.model.config
        method, progress = cell.method, self.trainer.progress
        assert isinstance(method, SearchMethod)
        space = Space(
            method,
            method.depths_of(config),
            len(method.families),
            config.depth,
            lambda architecture: method.count(architecture, config),
        )
        run = trained.run._replace(stage="search")
        path = self._directory([run]) / "search.json"
        progress.start([run], method.generations)
        searched = search(
            space,
            self.trainer.fitness(trained),
            cell.seed,
            load=lambda: self.store.read_json(path, lambda state: check_state(state, space)),
            save=lambda state: self.store.write_json(path, state),
            on_generation=lambda done, best: progress.epoch(done, [], [best]),
        )
        return {"families": list(method.families), **searched}

    def _directory(self, runs: list[Run]) -> epath.Path:
        """The folder of these runs' checkpoints: another one for any other setting, data, head
        size or stack."""
        made_with: list[Any] = [
            self.size,
            self.trainer.padded_classes,
            dict(make_mesh(runs[0].cell.settings.batch_size, num_trials=self.size).shape),
        ]
        for cell, stage, candidate, choice in runs:
            provenance = self.trainer.feed.data(cell.task).provenance
            made_with.append(
                {
                    **cell.stored_settings(self.trainer.weights_sha256),
                    "used_version": provenance["used_version"],
                    "fingerprint": provenance["fingerprint"],
                    **{"stage": stage, "candidate": candidate.given, "choice": choice},
                }
            )
        text = json.dumps(made_with, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = runs[0].cell.name + (f"-and-{len(runs) - 1}-more" if len(runs) > 1 else "")
        directory = self.store.checkpoint_dir(name, f"{runs[0].stage}-{digest}")
        self._directories.append(directory)
        return directory
