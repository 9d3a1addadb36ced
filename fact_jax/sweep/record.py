"""Stores finished cells and failures, and finds them again."""

import dataclasses
import datetime
import math
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from fact_jax.algebra.sharing import conditioned
from fact_jax.errors import UserError
from fact_jax.files.dictionary import Dictionary
from fact_jax.files.factors import to_bytes
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.plan import Cell
from fact_jax.sweep.ranks import phases
from fact_jax.sweep.result import VERSION, Examples, Result, Search
from fact_jax.sweep.runs import Failure, Trained
from fact_jax.sweep.shared import without_shared
from fact_jax.sweep.store import Store
from fact_jax.sweep.trainer import Trainer
from fact_jax.sweep.versions import environment
from fact_jax.training.trial import NonFiniteLoss, Trainable
from fact_jax.tuning import Method, count_parameters
from fact_jax.tuning.method import SearchMethod, SharingMethod


def store_result(
    store: Store,
    trainer: Trainer,
    trained: Trained,
    *,
    selection: dict[str, float | None],
    searched: dict[str, Any] | None,
    seconds: float,
) -> Result:
    """Writes a cell's factors, pictures and, last, its result, which makes it finished.

    Args:
      selection: the measure in % on the validation split of each candidate, by its label.
      searched: the architecture that was chosen and how, if the method searches for one.
      seconds: what the cell took.
    """
    cell, data = trained.run.cell, trainer.feed.data(trained.run.cell.task)
    accuracies, settings = trained.accuracies, cell.settings
    file = _file(trainer, trained)
    result = Result(
        version=VERSION,
        cell=cell.name,
        method=cell.method_name,
        task=cell.task,
        protocol=settings.protocol,
        variant=settings.variant,
        group=data.task.group,
        seed=cell.seed,
        accuracy=reported(cell, accuracies),
        accuracy_last_epoch=accuracies[-1],
        **trained.run.candidate._asdict(),
        selection=selection,
        grid_size=len(cell.candidates),
        search=cast(Search | None, searched),
        num_factors=count_parameters(file.trainable["factors"]),
        num_head=count_parameters(file.trainable["head"]),
        factor_file_bytes=len(file.content),
        num_train=trained.num_train,
        num_test=trained.num_eval,
        losses=list(trained.losses),
        test_accuracies=[None if math.isnan(a) else a for a in accuracies],
        class_names=data.class_names,
        **_fields_of(trained.findings),
        examples=_store_examples(store, trained),
        **{**trained.details, "seconds": {**trained.details["seconds"], "cell": seconds}},
        settings=cell.stored_settings(trainer.weights_sha256),
        data=dict(data.provenance),
        weights=str(trainer.weights),
        environment=environment(),
    )
    path = store.factors_path(cell.name)
    if file.dictionary is not None:
        store.write(path.parent / file.dictionary.file_name, file.dictionary.content)
    store.write(path, file.content)
    store.write_json(store.result_path(cell.name), result.to_json())
    return result


def reported(cell: Cell, accuracies: Sequence[float]) -> float:
    """The accuracy that counts, of those by epoch, which are NaN where nothing was measured.

    With 'paper' it is the best, as in the published numbers; of a training at several ranks, the
    best at the last one, because the others are of larger models than the one that is stored.
    """
    if cell.settings.protocol != "paper":
        return accuracies[-1]
    first = phases(cell.method, cell.settings)[-1].start
    return max(a for a in accuracies[first:] if not math.isnan(a))


def _fields_of(findings: Findings | None) -> dict[str, Any]:
    """The fields of a result that are findings of the last epoch, of the task's kind."""
    if findings is None:
        return {}
    if findings.multi_label:
        return {"measures": findings.measures, "label_precision": findings.label_precision}
    return {
        "measures": findings.measures,
        "per_class_accuracy": findings.per_class_accuracy,
        "confusion": findings.confusion,
    }


class _File(NamedTuple):
    """A cell's factor file, what is trained in it, and the dictionary that goes beside it."""

    content: bytes
    trainable: Trainable
    dictionary: Dictionary | None


def _file(trainer: Trainer, trained: Trained) -> _File:
    cell, config = trained.run.cell, trainer.model.config
    method, trainable = _as_stored(trained, trainer.feed.data(cell.task).task.num_classes)
    metadata, dictionary = _metadata(trainer, cell), trainer.dictionary(cell)
    if cell.together and isinstance(method, SharingMethod):
        # For FacT, a learning rate of the cores then means the same with every dictionary.
        trainable = {**trainable, "factors": conditioned(method, trainable["factors"])}
        stated = {name: metadata[name] for name in ("variant", "weights_sha256")}
        dictionary = Dictionary.of(method, trainable["factors"], config, stated)
    if dictionary is not None:
        trainable = without_shared(trainable, dictionary)
    content = to_bytes(method, trainable, config, metadata, cell.recipe.bits, dictionary)
    return _File(content, trainable, dictionary)


def _as_stored(trained: Trained, num_classes: int) -> tuple[Method, Trainable]:
    """The method of a cell's factor file, and its trained arrays without padding."""
    method, factors = trained.run.cell.method, trained.trainable["factors"]
    head = {k: v[..., :num_classes] for k, v in trained.trainable["head"].items()}
    if isinstance(method, SearchMethod):
        method, factors = method.subnet(factors, np.array(trained.run.choice))
    method = dataclasses.replace(method, scale=trained.run.candidate.scale)
    return method, {"factors": factors, "head": head}


def _metadata(trainer: Trainer, cell: Cell) -> dict[str, Any]:
    """The metadata of a cell's factor file."""
    data, settings = trainer.feed.data(cell.task), cell.settings
    return {
        "task": cell.task,
        "class_names": data.class_names,
        "variant": settings.variant,
        "weights_sha256": trainer.weights_sha256,
        "image_size": settings.image_size,
        "normalisation": settings.normalisation,
        "jpeg_quality": data.provenance["jpeg_quality"],
        "protocol": settings.protocol,
        **({"trained_ranks": ranks_of(cell)} if settings.start_ranks else {}),
        # Only where they are not what files of earlier versions mean.
        **({"multi_label": True} if data.task.multi_label else {}),
        **({"resize": settings.resize} if settings.resize != "square" else {}),
    }


def ranks_of(cell: Cell) -> list[dict[str, int]]:
    """The ranks of a cell's training, each with the epoch that it began with."""
    several = phases(cell.method, cell.settings)
    return [{"epoch": start, "rank": getattr(method, "rank", 0)} for start, method in several]


def _store_examples(store: Store, trained: Trained) -> Examples | None:
    """Writes the pictures of a cell, if it has findings; which ones these are."""
    if trained.findings is None or trained.findings.multi_label:
        return None
    path = store.examples_path(trained.run.cell.name)
    pictures, what = trained.findings.pictures()
    store.write(path, pictures)
    return cast(Examples, {"file": f"{path.parent.name}/{path.name}", **what})


def stored_result(store: Store, cell: Cell, settings: dict[str, Any]) -> Result | None:
    """The result of a cell, if there is one; UserError if not made with these settings."""
    path = store.result_path(cell.name)
    result = store.read_result(cell.name)
    if result is not None:
        old = result.settings
        changed = [k for k in sorted({*old, *settings}) if old.get(k) != settings.get(k)]
        if changed:
            text = ", ".join(f"{k} was {old.get(k)!r}, is now {settings.get(k)!r}" for k in changed)
            raise UserError(
                f"{path} was made with other settings: {text}. Use another --workdir, or remove "
                "that file to run the cell again."
            )
        try:
            result.check_complete()
        except ValueError as error:
            store.set_aside(path, error)
            return None
    return result


def store_failure(store: Store, cell: Cell, failure: Failure, command: str) -> None:
    """DIR/failures/<cell>.json; `command` runs the cell again."""
    error = failure.error
    text = "" if isinstance(error, NonFiniteLoss) else "".join(traceback.format_exception(error))
    content = {
        "cell": failure.cell,
        "method": cell.method_name,
        "task": cell.task,
        "seed": cell.seed,
        "error": type(error).__name__,
        "message": str(error),
        "traceback": text,
        "command": command,
        "when": datetime.datetime.now(datetime.UTC).isoformat(),
        "environment": environment(),
    }
    store.write_json(store.failure_path(failure.cell), content)
    # The record has it in words; itself it would keep the cell's arrays until the sweep ends.
    traceback.clear_frames(error.__traceback__)
