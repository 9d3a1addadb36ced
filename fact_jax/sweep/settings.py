"""The settings of a sweep: what each may be, and what it is, checked before anything starts.

`configs/base.py` has their defaults. A method's own settings have their ranges in the method's
fields (`fact_jax.ranges`).
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from fact_jax.backbone.config import ATTENTIONS, PRECISIONS, REMATS, VARIANTS, get_variant
from fact_jax.errors import UserError
from fact_jax.images.normalise import NORMALISATIONS
from fact_jax.images.pipeline import RESIZES
from fact_jax.ranges import (
    RATE,
    SCALE,
    SHARE,
    Each,
    Flag,
    Names,
    OneOf,
    OrNone,
    Range,
    Real,
    Text,
    Whole,
    allowed_values,
    check,
)
from fact_jax.sweep.resolution import GRID, Resolved, split_names
from fact_jax.training.recipe import OPTIMIZERS
from fact_jax.tuning import METHODS

PROTOCOLS = ("val", "paper")


class Setting(NamedTuple):
    """Allowed values, and one sentence without a full stop."""

    allowed: Range
    what: str


SETTINGS = {
    "seeds": Setting(Each(Whole(0, 2**31 - 1)), "of the random numbers, such as (0, 1, 2)"),
    "protocol": Setting(OneOf(PROTOCOLS), "how candidates are chosen and what is reported"),
    "variant": Setting(OneOf(VARIANTS), "the Vision Transformer"),
    "weights": Setting(Text(), "its weights: a file, a folder, hf:owner/name, or empty"),
    "gelu": Setting(OneOf(("", "exact", "tanh")), "empty: what the weights say"),
    "dtype": Setting(OneOf(("float32", "bfloat16")), "type that the network computes in"),
    "remat": Setting(OneOf(REMATS), "what the backward pass computes again"),
    "attention": Setting(OneOf(ATTENTIONS), "who computes attention"),
    "trials_per_device": Setting(Whole(0), "trials that train together at most; 0: what fits"),
    "tensorboard": Setting(Flag(), "whether scalars are written for TensorBoard"),
    "precision": Setting(OneOf(PRECISIONS), "of float32 products"),
    "data_dir": Setting(Text(), "folder of the data sets; empty: TFDS's default"),
    "data_cache": Setting(Text(), "folder for decoded images; empty: none"),
    "download": Setting(Flag(), "whether TFDS may download what is missing"),
    "skip_damaged": Setting(Flag(), "whether damaged pictures are left out"),
    "mock_data": Setting(Flag(), "whether examples are random"),
    "image_size": Setting(Whole(1, 4096), "pixels along a side of the network's input"),
    "resize": Setting(OneOf(RESIZES), "how pictures are brought to that size"),
    "normalisation": Setting(OneOf(NORMALISATIONS), "mean and deviation of the pixels"),
    "jpeg_quality": Setting(Whole(0, 95), "of JPEG copies; 0: none"),
    "epochs": Setting(Whole(1), "passes over the training images"),
    "warmup_epochs": Setting(OrNone(Whole(0)), "epochs in which the rate rises; None: a tenth"),
    "batch_size": Setting(Whole(1), "training images of a step"),
    "eval_batch_size": Setting(Whole(1), "test images at a time"),
    "eval_every": Setting(Whole(0), "epochs between protocol 'paper's test evaluations; 0: one"),
    "learning_rate": Setting(RATE, "peak of the schedule"),
    "weight_decay": Setting(Real(0), "of the trained numbers"),
    "optimizer": Setting(OneOf(OPTIMIZERS), "'sgd' has momentum 0.9"),
    "decay_vectors": Setting(Flag(), "whether biases, scales and shifts decay, too"),
    "dropout_rate": Setting(SHARE, "share of hidden values that are left out"),
    "drop_path_rate": Setting(SHARE, "share of images that skip a branch of a block"),
    "augment": Setting(Flag(), "whether few-shot images are augmented"),
    "mixup": Setting(Real(0), "parameter of mixup's Beta distribution; 0: none"),
    "cutmix": Setting(Real(0), "parameter of CutMix's Beta distribution; 0: none"),
    "label_smoothing": Setting(SHARE, "share of the uniform distribution in the targets"),
    "erasing": Setting(Real(0, 1), "probability that a part of an image is erased"),
    "train_limit": Setting(Whole(0), "training images at most; 0: all"),
    "eval_limit": Setting(Whole(0), "test images at most; 0: all"),
    "shots": Setting(Each(Whole(1), least=0), "images a class, such as (1, 2, 4)"),
}
_OPTIONAL = ("shots", "skip_damaged")  # which not every config has


def check_config(config: ConfigDict) -> None:
    """Raises UserError for a setting of the whole sweep that is missing, or has no sense."""
    for name, (allowed, what) in SETTINGS.items():
        if name in config:
            check(f"config.{name}", config[name], allowed, what)
        elif name not in _OPTIONAL:
            raise UserError(f"The config has no {name} ({what}); begin with configs/base.py's.")
    for name in ("tasks", "methods"):
        check(f"config.{name}", config[name], Names())
        if not split_names(config[name]):
            choices = f"choose from {', '.join(METHODS)}" if name == "methods" else "name one"
            raise UserError(f"config.{name} is empty; {choices}.")
    vit = get_variant(config.variant)
    if config.image_size % vit.patch_size:
        raise UserError(
            f"config.image_size {config.image_size} is not a multiple of {config.variant}'s patch "
            f"size {vit.patch_size}."
        )
    if config.attention == "cudnn" and config.dtype != "bfloat16":
        raise UserError(
            f"config.attention 'cudnn' computes in bfloat16, and config.dtype is {config.dtype!r}. "
            "Set config.dtype to 'bfloat16', or config.attention to 'xla'."
        )


def check_resolved(resolved: Resolved) -> None:
    """Raises UserError for a value of a cell without sense, named as the config has it."""
    for name, given in resolved.run.items():
        check(f"config.{given.path}", given.value, *SETTINGS[name])
    for several, given in resolved.lists.items():
        one = SCALE if several == "scales" else SETTINGS[GRID[several]].allowed
        check(f"config.{given.path}", given.value, Each(one), "to choose from on validation data")
    for part, settings in resolved.parts.items():
        ranges = allowed_values(METHODS[part]) if part in METHODS else {}
        for name, given in settings.items():
            if name == "scale" or name in ranges:
                check(f"config.{given.path}", given.value, ranges.get(name, SCALE))
