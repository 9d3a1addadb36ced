"""Trained tasks rewritten with a common dictionary."""

from collections.abc import Sequence
from typing import NamedTuple

from fact_jax.algebra.increments import Increments
from fact_jax.algebra.quantise import Bits
from fact_jax.algebra.quantise import rounded as quantised
from fact_jax.algebra.rounding import Rounded, measured
from fact_jax.algebra.sharing import share
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.dictionary import Dictionary
from fact_jax.files.factors import OF_THE_FILE, TrainedTask, to_bytes
from fact_jax.tuning.method import Method, SharingMethod

NUMERICS = ("dtype", "precision", "remat", "attention")  # of a ViT's config


class SharedTask(NamedTuple):
    """A task with a dictionary: its cores with their error, and the content of its factor file."""

    rounded: Rounded
    content: bytes


def share_tasks(
    tasks: Sequence[TrainedTask], method: Method, bits: Bits | None
) -> tuple[Dictionary, list[SharedTask]]:
    """Finds a dictionary of trained tasks and writes their files anew.

    Args:
      tasks: of one ViT and its weights; heads, classes and preprocessing stay.
      method: `FacTTT` or `FacTTK` with the rank and the scale that all tasks get.
      bits: bits a number of the tasks' files; None: float32. The dictionary has float32.

    Raises:
      UserError: the tasks are of different networks, or one has no low-rank increments.
    """
    first = tasks[0]
    for task in tasks:
        for key in ("vit", "weights_sha256"):
            if _network(task.metadata.get(key)) != _network(first.metadata.get(key)):
                raise UserError(
                    f"{task.path} and {first.path} were trained on different ViTs or weights; "
                    "tasks share a dictionary on one."
                )
    config = ViTConfig(**first.metadata["vit"])
    increments = [Increments.of(task.method, task.factors, config) for task in tasks]
    rounded = share(increments, method, config)
    stated = {k: first.metadata.get(k) for k in ("variant", "weights_sha256")}
    assert isinstance(method, SharingMethod)  # `share` takes no other
    dictionary = Dictionary.of(method, rounded[0].factors, config, stated)
    shared = []
    for task, of, one in zip(tasks, increments, rounded, strict=True):
        factors = one.factors
        if bits is not None:  # the cores have few; the dictionary keeps float32
            cores = {k: x for k, x in factors.items() if k not in method.shared}
            few = factors | quantised({"factors": cores}, bits)["factors"]
            one = measured(one._replace(factors=few), of, config)
        metadata = {k: v for k, v in task.metadata.items() if k not in OF_THE_FILE}
        metadata["rounded"] = {"file": task.path.name, "error": float(f"{one.error:.4g}")}
        trainable = {"factors": factors, "head": task.head}
        content = to_bytes(method, trainable, config, metadata, bits, dictionary)
        shared.append(SharedTask(one, content))
    return dictionary, shared


def _network(value: object) -> object:
    """A value to compare; small files have only the start of a checksum.

    How a network was computed (type, precision, memory) makes it no other one.
    """
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in NUMERICS}
    return value[:16] if isinstance(value, str) else value
