"""Trained tasks on their way into a bank: read, checked, and turned into rows of its stacks."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask, check_classes, check_fits
from fact_jax.files.load import load_factors
from fact_jax.serving.stack import Tree
from fact_jax.tuning import Combination, Full
from fact_jax.tuning.method import Method, factor_shapes

Source = str | os.PathLike[str] | TrainedTask

# Metadata that one normalised image must satisfy for all members of an ensemble.
_PREPROCESSING = ("normalisation", "image_size", "jpeg_quality")
_UNSTATED = {"normalisation": "imagenet", "jpeg_quality": None}  # what a file without them means


class BankTask(NamedTuple):
    """A task of a bank, as its users see it.

    Attributes:
      classes: names of the classes; "0", "1", ... where the factor file has none.
      metadata: the factor file's; of an ensemble, that of its first member.
      num_members: factor sets; more than one for an ensemble.
    """

    classes: tuple[str, ...]
    metadata: dict[str, Any]
    num_members: int

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels; their probabilities are independent."""
        return bool(self.metadata.get("multi_label"))


class Kind(NamedTuple):
    """The method and the dictionary that all factor sets of one program have in common.

    Attributes:
      method: with a scale of 1.
      dictionary: the checksum of the dictionary that they share; empty if they share none.
    """

    method: Method
    dictionary: str


class IncomingMember(NamedTuple):
    """A factor set as rows of stacks.

    Attributes:
      kind: what it goes through a program with.
      shared: the factors of its dictionary, float32; empty without one.
      factors: "factors" and "scale", float32, without those of the dictionary.
      width: of the stack of heads, at least the number of classes.
      head: "head" with "kernel" and "bias" of this width, float32.
    """

    kind: Kind
    shared: dict[str, np.ndarray]
    factors: Tree
    width: int
    head: Tree


class Incoming(NamedTuple):
    """A task that is about to be added."""

    name: str
    task: BankTask
    members: tuple[IncomingMember, ...]


def prepare(
    name: str,
    source: Source | Sequence[Source],
    config: ViTConfig,
    base_checksum: Callable[[TrainedTask], str | None],
) -> Incoming:
    """Reads and checks a task, and makes rows of it.

    Raises:
      UserError: it cannot be read, or it does not belong into a bank of this ViT.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"The name of a task is {name!r:.100}; expected a text.")
    sources: Sequence[Any] = (source,)
    if isinstance(source, Sequence) and not isinstance(source, str | TrainedTask):
        sources = source
    if not sources:
        raise UserError(f"Task {name!r:.100} has no factors; expected at least one factor file.")
    tasks = [_read(s) for s in sources]
    for task in tasks:
        _check(task, config, base_checksum(task))
        _check_members(name, tasks[0], task)
    names = next((n for t in tasks if (n := t.metadata.get("class_names"))), None)
    classes = names or map(str, range(tasks[0].num_classes))
    shown = BankTask(tuple(classes), tasks[0].metadata, len(tasks))
    return Incoming(name, shown, tuple(map(_member, tasks)))


def _read(source: Any) -> TrainedTask:
    if isinstance(source, TrainedTask):
        return source
    if isinstance(source, str | os.PathLike):
        return load_factors(source)
    raise UserError(
        f"A task of type {type(source).__name__}; expected the path of a factor file, what "
        "fact_jax.load_factors gives, or a list of these."
    )


def _check(task: TrainedTask, config: ViTConfig, base_checksum: str | None) -> None:
    """Raises UserError for a task that no bank of this ViT can serve."""
    parts = [p for _, p in task.method.parts] if isinstance(task.method, Combination) else []
    if any(isinstance(method, Full) for method in (task.method, *parts)):
        raise UserError(
            f"Factor file {task.path} holds all weights of a ViT (method full), which tasks cannot "
            "share a batch with: each image would need a network of its own. Serve it alone, with "
            "fact_jax.Predictor."
        )
    check_fits(task, config, base_checksum, any_weights=base_checksum is None)
    shapes = {name: tuple(np.shape(value)) for name, value in task.factors.items()}
    if shapes != factor_shapes(task.method, config):  # says what differs
        jax.eval_shape(lambda factors: task.method.adaptation(factors, config), task.factors)
    check_classes(f"Factor file {task.path}", task.num_classes)
    kernel = tuple(np.shape(task.head["kernel"]))
    if kernel != (expected := (config.width, task.num_classes)):
        raise UserError(
            f"Factor file {task.path}: the head's kernel has shape {kernel}, expected {expected}."
        )


def _check_members(name: str, first: TrainedTask, other: TrainedTask) -> None:
    """Raises UserError for members of an ensemble that are not of one task."""
    faults = []
    if first.num_classes != other.num_classes:
        faults = [f"{first.num_classes} and {other.num_classes} classes"]
    if first.multi_label != other.multi_label:
        faults = ["one label an image, and several"]
    ways = [task.metadata.get("resize") or "square" for task in (first, other)]
    if not faults and ways[0] != ways[1]:
        faults = [f"resize {ways[0]!r} and {ways[1]!r}"]
    for key in ("class_names", *_PREPROCESSING):
        a, b = (task.metadata.get(key) or _UNSTATED.get(key) for task in (first, other))
        stated = key in _UNSTATED or (a is not None and b is not None)
        if not faults and stated and a != b:
            faults = ["other class names" if key == "class_names" else f"{key} {a!r} and {b!r}"]
    if faults:
        raise UserError(
            f"Task {name!r:.100} cannot be an ensemble of {first.path} and {other.path}: they have "
            f"{faults[0]}. Add them under names of their own."
        )


def _member(task: TrainedTask) -> IncomingMember:
    method: Any = task.method
    width = stored_width(task.num_classes)
    pad = width - task.num_classes
    kernel, bias = (np.asarray(task.head[name], np.float32) for name in ("kernel", "bias"))
    head = {"kernel": np.pad(kernel, ((0, 0), (0, pad))), "bias": np.pad(bias, (0, pad))}
    shared = task.dictionary.factors if task.dictionary else {}
    kind = Kind(
        dataclasses.replace(method, scale=1.0), task.dictionary.checksum if task.dictionary else ""
    )
    factors = {k: np.asarray(v, np.float32) for k, v in task.factors.items() if k not in shared}
    row = {"factors": factors, "scale": np.float32(method.scale)}
    return IncomingMember(kind, shared, row, width, {"head": head})


def stored_width(num_classes: int) -> int:
    """The width of the stack that holds a head: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...

    Heads of all tasks in one stack would be as wide as the widest, and stacks of each number of
    classes would be many programs.
    """
    power = 1 << (num_classes - 1).bit_length()
    return 3 * power // 4 if num_classes <= 3 * power // 4 else power
