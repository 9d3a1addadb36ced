"""A trained task, or weights alone, as a folder that other libraries open."""

from typing import Any

import jax

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.merging import merge
from fact_jax.files.beside import preprocessor
from fact_jax.files.card import Card, preprocessing_sentence
from fact_jax.files.factors import TrainedTask, check_classes, check_fits
from fact_jax.files.model_folder import hugging_face_files, timm_files
from fact_jax.files.weights import checksum
from fact_jax.tuning.method import Base, count_parameters
from fact_jax.tuning.registry import describe
from fact_jax.version import __version__

WRITERS = {"hf": hugging_face_files, "timm": timm_files}
"""Writers of merged models by the names of their formats."""


def card_of(
    task: TrainedTask | None,
    config: ViTConfig,
    base_model: str,
    facts: dict[str, str],
    normalisation: str = "imagenet",
) -> Card:
    """The facts of a task for its model card; without one, of weights alone.

    `facts` are what the factor file does not say, such as the accuracy. The `normalisation` is that
    of weights alone.
    """
    metadata: dict[str, Any] = task.metadata if task else {"normalisation": normalisation}
    versions = metadata.get("versions") or {"fact_jax": __version__, "jax": jax.__version__}
    stated = {
        "data": metadata.get("task") or "not stated",
        "protocol": metadata.get("protocol") or "not stated",
        **facts,
        "variant": metadata.get("variant") or "",
        "checksum of the base weights": metadata.get("weights_sha256") or "not stated",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    method = "no task: the weights alone"
    if task is not None:
        name, settings = describe(task.method)
        words = ", ".join(f"{k} {v}" for k, v in settings.items() if not isinstance(v, dict))
        method = f"{name} ({words})" if words else name
        stated["numbers"] = (
            f"{count_parameters(task.factors):,} of the factors, "
            f"{count_parameters(task.head):,} of the head"
        )
    return Card(
        str(metadata.get("task") or (task and task.path.stem) or "Vision Transformer"),
        method,
        tuple(metadata.get("class_names") or map(str, range(task.num_classes if task else 0))),
        preprocessing_sentence(metadata, preprocessor(metadata, config.image_size)),
        base_model,
        {title: text for title, text in stated.items() if text},
    )


def merged_base(
    config: ViTConfig, base: Base, task: TrainedTask | None, any_weights: bool = False
) -> Base:
    """The parameters with a task's changes merged, and its head as "head"; without one, `base`.

    Raises:
      UserError: the task belongs to other weights, or has changes that do not merge.
    """
    if task is None:
        return base
    check_classes(str(task.path), task.num_classes)
    check_fits(task, config, checksum(base), any_weights)
    return {**merge(base, task.method.adaptation(task.factors, config)), "head": task.head}


def merged_files(
    to: str, config: ViTConfig, merged: Base, metadata: dict[str, Any], card: Card
) -> dict[str, bytes]:
    """The files of a merged model, by their names, in a format of `WRITERS`."""
    return WRITERS[to](config, merged, metadata, card)
