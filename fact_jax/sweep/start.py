"""Trainings that go on from the factors of an earlier one, such as rounded ones."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.factors import check_fits
from fact_jax.files.load import load_factors
from fact_jax.training.trial import Trainable
from fact_jax.tuning.method import Method, SearchMethod


def check_start(where: str, method: Method, varied: Mapping[str, Sequence[float]]) -> None:
    """Raises UserError if a method, called `where` in the config, cannot go on from factors.

    `varied` are the lists of candidates to choose from on validation data, by their names.
    """
    if isinstance(method, SearchMethod):
        raise UserError(
            f"{where}.start_from: {type(method).__name__} searches for an architecture, and a "
            "factor file has only the one that was found. Leave it empty."
        )
    for several, values in varied.items():
        raise UserError(
            f"{where}.start_from is set, and {where}.{several} has {len(values)} candidates to "
            "choose from on validation images. The factors were trained on these images. Give one, "
            f"such as --{where}.{several}='({values[0]:g},)'"
        )


def start_sha256(path: Path) -> str:
    """The checksum of a factor file to go on from. Raises UserError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"Training is to begin with {path}, which cannot be read ({error.strerror}). "
            "config.start_from, or a method's, is a folder with a factor file for each cell, such "
            "as the factors/ of another work directory."
        ) from error


@dataclasses.dataclass(frozen=True)
class Start:
    """The network and the head that a factor file must fit, so that training goes on from it.

    Attributes:
      config: the ViT's.
      weights_sha256: the checksum of its weights.
      num_classes: classes of the task.
      padded_classes: columns of the trained head, of which the last ones are padding.
    """

    config: ViTConfig
    weights_sha256: str
    num_classes: int
    padded_classes: int

    def read(self, path: Path, method: Method, scale: float) -> Trainable:
        """The factors and the padded head of a file.

        Raises UserError if they are of another method, scale, ViT or number of classes.
        """
        task = load_factors(path)
        wanted = dataclasses.replace(method, scale=scale)
        if task.method != wanted:
            raise UserError(
                f"{path} has factors of {task.method}, and the config says {wanted}. Training "
                "goes on with the same method and settings: change the config's."
            )
        check_fits(task, self.config, self.weights_sha256)
        if task.num_classes != self.num_classes:
            raise UserError(
                f"{path} has a head of {task.num_classes} classes, and the task has "
                f"{self.num_classes}. Give the factors of this task."
            )
        pad = self.padded_classes - self.num_classes
        head = {
            name: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)]) for name, x in task.head.items()
        }
        trainable: Trainable = jax.tree.map(jnp.asarray, {"factors": task.factors, "head": head})
        return trainable
