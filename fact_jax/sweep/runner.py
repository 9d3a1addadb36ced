"""Runs the cells of a plan in groups: selection, final training, and what is stored of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from fact_jax.data.tasks import get_task
from fact_jax.errors import UserError
from fact_jax.sweep.evolution import Space, search
from fact_jax.sweep.plan import Candidate, Cell
from fact_jax.sweep.runs import Progress, Run, Trained
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import agree
from fact_jax.training.trial import NonFiniteLoss
from fact_jax.tuning import Method, count_parameters
from fact_jax.tuning.files import to_bytes
from fact_jax.tuning.method import SearchMethod


def _candidates(cells: Sequence[Cell]) -> list[Run]:
    several = (cell for cell in cells if len(cell.candidates) > 1)
    return [Run(cell, "selection", candidate) for cell in several for candidate in cell.candidates]


def _kind(cell: Cell) -> tuple:
    """Cells of one kind can train in one program, epoch by epoch."""
    s = cell.settings
    left_out = (s["dropout_rate"] == 0, s["drop_path_rate"] == 0)
    return cell.method, s["epochs"], s["eval_every"], left_out, cell.recipe, s["augment"]


class Runner:
    """A sweep's cells, its work directory, and the trainer of its groups."""

    def __init__(self, config: ConfigDict, store: Store, progress: Progress):
        self.config, self.store = config, store
        self.trainer = Trainer(config, progress)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that the cell's result depends on, as it is read back from a result."""
        settings = {**cell.settings, "weights_sha256": self.trainer.weights_sha256}
        return json.loads(json.dumps(settings))  # which has lists where a method has tuples

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The stored result of a cell; UserError if it was made with other settings."""
        path = self.store.result_path(cell.name)
        result = self.store.read_json(path)
        if result is not None:
            old, new = result.get("settings", {}), self.settings(cell)
            changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            if changed:
                text = ", ".join(f"{k} was {old.get(k)!r}, is now {new.get(k)!r}" for k in changed)
                raise UserError(
                    f"{path} was made with other settings: {text}. Use another --workdir, or "
                    "remove that file to run the cell again."
                )
        return result

    def run(
        self,
        cells: list[Cell],
        results: list[dict[str, Any] | None],
        failures: list[NonFiniteLoss],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, result) of every cell whose entry in `results` is None, as soon as it is there.

        Cells of a kind are stacked into groups, in their order. Those that leave the finite numbers
        do not stop the others: their errors end up in `failures`.
        """
        missing = agree(np.array([result is None for result in results]))
        kinds: dict[tuple, list[int]] = {}
        for i, cell in enumerate(cells):
            kinds.setdefault(_kind(cell), []).append(i)
        groups = []
        for members in kinds.values():
            size = self._group_size([cells[i] for i in members])
            groups += [(size, group) for group in _batches(members, size)]
        for size, group in sorted(groups, key=lambda g: g[1][-1]):  # in the plan's order
            if missing[group].any():
                yield from self._run_group(cells, results, group, size, failures)

    def _group_size(self, cells: list[Cell]) -> int:
        """From the whole sweep and not from what is left of it: the last bits of a result may
        depend on it."""
        stages = [len(_candidates(cells)), len(cells)]
        return self.trainer.group_size(stages, cells)

    def _run_group(
        self,
        cells: list[Cell],
        results: list[dict[str, Any] | None],
        group: list[int],
        size: int,
        failures: list[NonFiniteLoss],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Selects (where there is a choice), trains, evaluates and stores up to `size` cells.

        All of the group are trained, finished or not: a stack costs the same, and so its
        checkpoints are found again by a sweep that was stopped while it stored.
        """
        started, index = time.time(), {cells[i].name: i for i in group}
        directories: list[epath.Path] = []

        def train_all(runs: list[Run]) -> Iterator[tuple[int, Trained]]:
            for part in _batches(runs, size):
                directories.append(self._directory(part, size))
                for trained in self.trainer.train(part, size, directories[-1]):
                    yield index[trained.run.cell.name], trained

        scores: dict[int, dict[Candidate, float]] = {i: {} for i in group}
        errors: dict[int, NonFiniteLoss] = {}
        for i, trained in train_all(_candidates([cells[i] for i in group])):
            if trained.error is None:
                scores[i][trained.run.candidate] = trained.accuracies[-1]
            else:  # a candidate that diverges is not chosen
                errors[i] = trained.error
        finals = []
        for i in group:
            if len(cells[i].candidates) == 1:
                finals.append(Run(cells[i], "final", cells[i].candidates[0]))
            elif scores[i]:
                # The first of equals: max() keeps the earliest.
                finals.append(Run(cells[i], "final", max(scores[i], key=scores[i].__getitem__)))
            else:
                failures.append(errors[i])
        searches: dict[int, dict[str, Any]] = {}
        if isinstance(cells[group[0]].method, SearchMethod):
            own, finals = {index[run.cell.name]: run for run in finals}, []
            for i, trained in train_all([run._replace(stage="supernet") for run in own.values()]):
                if trained.error is not None:
                    failures.append(trained.error)
                    continue
                run = trained.run._replace(stage="search")
                directories.append(self._directory([run], size))
                searches[i] = self._search(trained, directories[-1])
                finals.append(own[i]._replace(choice=searches[i]["best"]))
        failed = len(finals) < len(group)
        for i, trained in train_all(finals):
            if trained.error is not None:
                failures.append(trained.error)
                failed = True
            elif results[i] is None:
                cell, seconds = cells[i], (time.time() - started) / len(group)
                grid = cell.candidates if len(cell.candidates) > 1 else ()
                chosen = {cell.label(c): scores[i].get(c) for c in grid}
                yield i, self._store(trained, chosen, seconds, searches.get(i))
        if not failed and jax.process_index() == 0:
            for directory in directories:
                directory.rmtree()

    def _search(self, trained: Trained, directory: epath.Path) -> dict[str, Any]:
        """The best architecture of a trained supernet, and how it was found. What is done of it
        lies in the directory."""
        cell, config = trained.run.cell, self.trainer.model.config
        method = cell.method
        assert isinstance(method, SearchMethod)
        space = Space(
            method,
            method.depths_of(config),
            len(method.families),
            config.depth,
            lambda architecture: method.count(architecture, config),
        )
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "search.json"
        self.trainer.progress.start([cell.name], "search", method.generations)
        return search(
            space,
            self.trainer.fitness(trained),
            cell.seed,
            load=lambda: self.store.read_json(path),
            save=lambda state: self.store.write_json(path, state),
            on_generation=self.trainer.progress.epoch,
        )

    def _directory(self, runs: list[Run], size: int) -> epath.Path:
        """Where the checkpoints of these runs lie: elsewhere for any other setting, data, head size
        or stack."""
        made_with: list[Any] = [
            size,
            self.trainer.padded_classes,
            dict(self.trainer.mesh(size).shape),
        ]
        for cell, stage, candidate, choice in runs:
            provenance = self.trainer.feed.data(cell.task).provenance
            data = {k: provenance[k] for k in ("used_version", "fingerprint")}
            own = {"stage": stage, "candidate": candidate, "choice": choice}
            made_with.append({**self.settings(cell), **data, **own})
        text = json.dumps(made_with, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = runs[0].cell.name + (f"-and-{len(runs) - 1}-more" if len(runs) > 1 else "")
        return self.store.checkpoint_dir(name, f"{runs[0].stage}-{digest}")

    def _store(
        self,
        trained: Trained,
        selection: dict[str, float | None],
        seconds: float,
        searched: dict[str, Any] | None,
    ) -> dict[str, Any]:
        cell, candidate, choice = trained.run.cell, trained.run.candidate, trained.run.choice
        accuracies = trained.accuracies
        task, paper = get_task(cell.task), cell.settings["protocol"] == "paper"
        measured, last = [a for a in accuracies if not math.isnan(a)], accuracies[-1]
        head = {k: v[..., : task.num_classes] for k, v in trained.trainable["head"].items()}
        method: Method = cell.method
        factors = trained.trainable["factors"]
        if isinstance(method, SearchMethod):
            method, factors = method.subnet(factors, np.array(choice))
        method = dataclasses.replace(method, scale=candidate.scale)
        trainable = {"factors": factors, "head": head}
        fields = {
            "task": cell.task,
            "class_names": self.trainer.feed.data(cell.task).class_names,
            "variant": self.config.variant,
            "weights_sha256": self.trainer.weights_sha256,
            "image_size": self.config.image_size,
            "normalisation": self.config.normalisation,
            "jpeg_quality": self.config.jpeg_quality or None,
            "protocol": cell.settings["protocol"],
        }
        content = to_bytes(method, trainable, self.trainer.model.config, fields)
        result = {
            "cell": cell.name,
            "method": cell.method_name,
            **{k: fields[k] for k in ("task", "protocol", "variant")},
            "group": task.group,
            "seed": cell.seed,
            # 'paper' reports the best of its test evaluations, as the published numbers do.
            "accuracy": max(measured) if paper else last,
            "accuracy_last_epoch": last,
            **candidate._asdict(),
            "selection": selection,  # accuracy on the validation split
            "grid_size": len(cell.candidates),
            "search": searched,
            "num_factors": count_parameters(trainable["factors"]),
            "num_head": count_parameters(trainable["head"]),
            "factor_file_bytes": len(content),
            "num_train": trained.num_train,
            "num_test": trained.num_eval,
            "losses": trained.losses,
            "test_accuracies": [None if math.isnan(a) else a for a in accuracies],
            **trained.details,
            "seconds": {**trained.details["seconds"], "cell": seconds},
            "settings": self.settings(cell),
            "data": self.trainer.feed.data(cell.task).provenance,
            "weights": str(self.trainer.weights),
            "environment": environment(),
        }
        self.store.write_factors(cell.name, content)
        self.store.write_json(self.store.result_path(cell.name), result)
        return result


def _batches(items: Sequence[Any], size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
