"""A trained task rounded to fewer numbers, as a factor file of its own."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.moments import second_moments
from fact_jax.algebra.quantise import Bits
from fact_jax.algebra.quantise import rounded as quantised
from fact_jax.algebra.rounding import (
    NAMES,
    Rounded,
    full_rank,
    measured,
    minimised,
    round_to,
    round_within,
)
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT
from fact_jax.errors import UserError
from fact_jax.files.factors import OF_THE_FILE, TrainedTask, to_bytes
from fact_jax.serving.inputs import Pictures, check_side
from fact_jax.tuning.method import Base, Factors, factor_shapes
from fact_jax.tuning.registry import build, describe

BATCH = 16  # pictures at a time, whose inputs of all sites are in memory


@dataclasses.dataclass(frozen=True)
class Target:
    """A target of rounding. Without rank, error and bytes, the rank stays.

    Attributes:
      method: the method's name; None keeps the task's, or takes FacT-TT if it cannot be rounded to.
      rank: its rank.
      error: most relative error, for the smallest rank that keeps it.
      bytes: most bytes of the factor file, for the largest rank that keeps them.
      bits: bits a number of the factor file; None: float32.
    """

    method: str | None = None
    rank: int | None = None
    error: float | None = None
    bytes: int | None = None
    bits: Bits | None = None

    @property
    def only_bits(self) -> bool:
        """Whether method and rank stay."""
        return (self.method, self.rank, self.error, self.bytes) == (None,) * 4


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Unlabelled pictures on a network, whose slices' inputs rounding takes into account.

    Attributes:
      load: the network and its weights for a task.
      paths: the pictures.
      unreadable: pictures that could not be read, with the reason; filled by `moments`.
    """

    load: Callable[[TrainedTask], tuple[ViT, Base]]
    paths: Sequence[Path]
    unreadable: dict[Path, str] = dataclasses.field(default_factory=dict)

    def moments(self, task: TrainedTask, left: np.ndarray) -> np.ndarray:
        """Second moments of the inputs, [n, p, p]. Pictures that cannot be read are left out.

        Raises:
          UserError: no picture can be read.
        """
        model, base = self.load(task)
        metadata, config = task.metadata, model.config
        side = metadata.get("image_size") or config.image_size
        check_side(f"Factor file {task.path} asks for images of", side, config.patch_size)
        pictures = Pictures.of(self.paths, task, side)
        adaptation = task.method.adaptation(task.factors, config)
        return second_moments(model, base, adaptation, self._readable(pictures), left)

    def _readable(self, pictures: Pictures) -> Iterator[np.ndarray]:
        """Batches without the pictures that could not be read."""
        start = 0
        for batch in pictures.batches(BATCH):
            rows = [i for i in range(len(batch)) if start + i not in pictures.unreadable]
            start += len(batch)
            if rows:
                yield batch[rows]
        self.unreadable.update((self.paths[i], why) for i, why in pictures.unreadable.items())
        if len(pictures.unreadable) == len(self.paths):
            path, reason = next(iter(self.unreadable.items()))
            raise UserError(f"None of the pictures can be read; of {path}: {reason}")


class RoundedTask(NamedTuple):
    """A rounded task: the factors with their error, and the content of the factor file."""

    rounded: Rounded
    content: bytes


def round_task(task: TrainedTask, target: Target, inputs: Inputs | None = None) -> RoundedTask:
    """Rounds a trained task; head, classes and preprocessing stay.

    With `inputs`, what the increments do to them is kept, for FacT-TT alone.

    Raises:
      UserError: the task has changes without a low-rank form, or nothing meets the target.
    """
    config = task.config
    if target.bits is not None and target.only_bits:
        if inputs is not None:
            raise UserError(
                "Fewer bits alone take no account of the inputs: leave out the images, or give a "
                "rank, an error or a size."
            )
        return _requantised(task, target.bits, config)
    name, settings = describe(task.method)
    to = target.method or (name if name in NAMES else "fact_tt")
    # The scale of a combination multiplies those of its parts.
    scale = {} if "+" in name else {"scale": task.method.scale}
    method: Any = build(to, settings if to == name else scale)
    try:
        increments = Increments.of(task.method, task.factors, config)
        left = Joint.of(increments).left
        moments = None if inputs is None else inputs.moments(task, left)

        def stored(rounded: Rounded) -> Rounded:
            """Gives the numbers that the file will hold, with their errors."""
            if target.bits is None:
                return rounded
            return _quantised(rounded, target.bits, increments, config, moments)

        if target.error is not None:
            rounded = round_within(method, increments, config, target.error, moments, stored)
        else:
            rank = target.rank or getattr(task.method, "rank", None)
            if target.bytes is not None:
                rank = _largest(task, method, increments, config, target)
            if rank is None:
                raise UserError(f"{name} has no rank of its own: give one.")
            method = dataclasses.replace(method, rank=rank)
            rounded = round_to(method, increments, config, moments)
    except UserError as error:
        raise UserError(f"{task.path}: {error}") from error
    own = Rounded(task.method, task.factors, 0.0, 0.0)
    if _holds(rounded.method, task.method, exactly=target.rank is not None) and (
        target.error is None or minimised(stored(own)) <= target.error
    ):
        rounded = own
    kept = stored(rounded)
    return RoundedTask(kept, _content(task, kept, config, rounded.factors, target.bits))


def _holds(rounded: Any, trained: Any, exactly: bool) -> bool:
    """Whether the task's own factors will do: a method of its rank, or of more unless `exactly`."""
    if type(rounded) is not type(trained):
        return False
    if rounded.rank < trained.rank or (exactly and rounded.rank > trained.rank):
        return False
    return bool(dataclasses.replace(rounded, rank=trained.rank) == trained)


def _quantised(
    rounded: Rounded,
    bits: Bits,
    increments: Increments,
    config: ViTConfig,
    moments: np.ndarray | None,
) -> Rounded:
    """The numbers that a file of few bits holds, with their error."""
    factors = quantised({"factors": rounded.factors}, bits)["factors"]
    few = Rounded(rounded.method, factors, 0.0, None)
    return measured(few, increments, config, moments)


def _requantised(task: TrainedTask, bits: Bits, config: ViTConfig) -> RoundedTask:
    """A task of any method at few bits. The error is that of the numbers."""
    stored = quantised({"factors": task.factors}, bits)["factors"]
    lost = sum(float(jnp.sum((stored[name] - x) ** 2)) for name, x in task.factors.items())
    size = sum(float(jnp.sum(x**2)) for x in task.factors.values())
    rounded = Rounded(task.method, stored, (lost / size) ** 0.5 if size else 0.0, None)
    return RoundedTask(rounded, _content(task, rounded, config, task.factors, bits))


def _content(
    task: TrainedTask, rounded: Rounded, config: ViTConfig, factors: Factors, bits: Bits | None
) -> bytes:
    """The file of these factors. Its metadata say what it was made of."""
    name, settings = describe(task.method)
    metadata = {key: value for key, value in task.metadata.items() if key not in OF_THE_FILE}
    metadata["rounded"] = {
        "method": name,
        "method_settings": settings,
        "file": task.path.name,
        "error": float(f"{rounded.error:.4g}"),
        "bound": None if rounded.bound is None else float(f"{rounded.bound:.4g}"),
    }
    if rounded.weighted_error is not None:
        metadata["rounded"]["weighted_error"] = float(f"{rounded.weighted_error:.4g}")
    trainable = {"factors": factors, "head": task.head}
    return to_bytes(rounded.method, trainable, config, metadata, bits)


def _largest(
    task: TrainedTask, method: Any, increments: Increments, config: ViTConfig, target: Target
) -> int:
    """The largest useful rank whose file has at most the target's bytes."""
    size = target.bytes or 0
    # The sites of LoRA follow from the increments, at whatever rank.
    method = round_to(dataclasses.replace(method, rank=1), increments, config).method

    def bytes_at(rank: int) -> int:
        shaped = dataclasses.replace(method, rank=rank)
        zeros = {k: jnp.zeros(v, jnp.float32) for k, v in factor_shapes(shaped, config).items()}
        # The longest texts that numbers of four figures have.
        longest = Rounded(shaped, zeros, *[-1.234e-100] * 3)
        return len(_content(task, longest, config, zeros, target.bits))

    low, high = 0, full_rank(method, increments, config) + 1
    while high - low > 1:
        rank = (low + high) // 2
        low, high = (rank, high) if bytes_at(rank) <= size else (low, rank)
    if not low:
        raise UserError(
            f"no rank fits into {size:,} bytes: rank 1 takes up to {bytes_at(1):,}, with the head."
        )
    return low
