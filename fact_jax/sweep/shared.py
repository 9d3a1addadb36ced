"""Factors that the tasks of a sweep share: a dictionary from a file, or one that they learn."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.dictionary import Dictionary, read_dictionary
from fact_jax.sweep.settings import RunSettings
from fact_jax.training.trial import Trainable
from fact_jax.tuning import METHODS
from fact_jax.tuning.method import Method, SharingMethod

LEARN = "learn"
"""The setting `shared` of cells whose tasks learn a dictionary together."""


def check_shared(
    where: str, method: Method, varied: Mapping[str, Sequence[float]], settings: RunSettings
) -> None:
    """Raises UserError if a method, called `where` in the config, cannot share factors.

    Args:
      varied: the lists of candidates to choose from on validation data, by their names.
      settings: those of the run.
    """
    shared = settings.shared
    if not isinstance(method, SharingMethod):
        sharing = ", ".join(name for name, kind in METHODS.items() if hasattr(kind, "shared"))
        raise UserError(
            f"{where}.shared is {shared!r}, and {type(method).__name__} has no factors that tasks "
            f"share; these methods have: {sharing}. Leave it empty."
        )
    if settings.start_from:
        raise UserError(
            f"{where}.shared and {where}.start_from are both set; factors come from one of them. "
            "Leave one empty."
        )
    if shared != LEARN:
        return
    for several, values in varied.items():
        raise UserError(
            f"{where}.{several} has {len(values)} candidates to choose from on validation data, "
            "and tasks that learn a dictionary together need the same one. Give one, such as "
            f"--{where}.{several}='({values[0]:g},)'"
        )
    if settings.factor_bits:
        raise UserError(
            f"{where}.shared is 'learn', and {where}.factor_bits is {settings.factor_bits}: a "
            "dictionary is stored in float32. Learn it first, and train tasks for few bits with it."
        )


def shared_sha256(path: Path) -> str:
    """The checksum of a dictionary. Raises UserError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"Tasks are to share {path}, which cannot be read ({error.strerror}). config.shared, "
            "or a method's, is a dictionary of `fact-jax bank train` or `fact-jax bank share`."
        ) from error


def dictionary_for(
    path: Path, method: Method, config: ViTConfig, weights_sha256: str
) -> Dictionary:
    """The dictionary of a file. Raises UserError if it is not for this method and network."""
    dictionary = _read(path, shared_sha256(path))
    dictionary.check(f"{path}: a method", method, config, weights_sha256)
    return dictionary


@functools.lru_cache(maxsize=16)
def _read(path: Path, checksum: str) -> Dictionary:
    """Reads a dictionary once; another checksum is that of a file that has changed."""
    return read_dictionary(path)


def untrained(trainable: Trainable, dictionary: Dictionary) -> Trainable:
    """Gives what a task trains beside a dictionary: cores, which are zero, and its fresh head."""
    fresh = without_shared(trainable, dictionary)
    return {**fresh, "factors": jax.tree.map(jnp.zeros_like, fresh["factors"])}


def without_shared(trainable: Trainable, dictionary: Dictionary) -> Trainable:
    """A task's head, and its factors without those of the dictionary."""
    factors = {k: v for k, v in trainable["factors"].items() if k not in dictionary.factors}
    return {**trainable, "factors": factors}


def with_shared(trainable: Trainable, dictionary: Dictionary | None) -> Trainable:
    """All factors of a task, with its dictionary's."""
    if dictionary is None:
        return trainable
    return {**trainable, "factors": {**dictionary.factors, **trainable["factors"]}}
