"""Settings of FacT's released code on VTAB-1K: ViT-B/16, 100 epochs of AdamW at 1e-3, batch 64.

Source: JieShibo/PETL-ViT, FacT/vtab.py. The protocol differs by default: 'val' chooses the scale
on val200, trains on all 1,000 images and reports the last epoch; 'paper' reports the best of ten
test evaluations, as the published numbers do.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fact_jax.sweep.resolution import GRID, METHOD_SETTINGS
from fact_jax.tuning import METHODS


def method(name: str, **own: Any) -> ConfigDict:
    """A method's settings: `own`, and places for all others that a command line may set.

    No place for what `own` sets by task, or as a list of candidates: it would change nothing.
    """
    fields = dataclasses.fields(METHODS[name]) if name in METHODS else ()
    types = {f.name: type(f.default) for f in fields if f.default is not dataclasses.MISSING}
    run = get_config()
    types |= {setting: run.get_type(setting) for setting in METHOD_SETTINGS}
    types |= dict.fromkeys(GRID, tuple)
    decided = {GRID[several] for several in GRID if several in own}
    decided |= {setting for task in own.get("per_task", {}).values() for setting in task}
    places = {k: placeholder(kind) for k, kind in types.items() if k not in decided}
    return ConfigDict({**places, **own})


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.tasks = "all"  # or names with commas between them
    config.methods = ""  # names with commas between them, each with its settings below
    config.seeds = (42,)
    config.protocol = "val"

    config.variant = "vit_b16"
    config.weights = ""  # file, folder or hf:owner/name; empty: the published one, downloaded once
    config.gelu = ""  # 'exact' or 'tanh'; empty: what the weights say, else exact
    config.dtype = "float32"  # compute type; 'bfloat16' on TPU and GPU
    config.remat = "none"  # 'attention', 'block': less memory, more time (docs/performance.md)
    config.attention = "xla"  # or 'cudnn': the fused kernel of NVIDIA GPUs, in bfloat16
    config.trials_per_device = 0  # at most, that train together; 0: what fits
    config.tensorboard = False  # scalars in DIR/tensorboard; needs tensorboardX
    config.precision = "default"  # of float32 products; 'highest': true float32 on TPU and GPU

    config.data_dir = ""  # TFDS's; empty: ~/tensorflow_datasets
    config.data_cache = ""  # folder for decoded splits; empty: none
    config.download = False  # let TFDS download and prepare what is missing
    config.skip_damaged = False  # of folders and lists: leave out damaged pictures, and say so
    config.mock_data = False  # random examples of the right kind: tries the plumbing only
    config.image_size = 224
    config.resize = "square"  # or 'crop': both sides to 256/224, then the middle
    config.normalisation = "imagenet"  # or 'inception', 'none'
    config.jpeg_quality = 0  # 75: the JPEG copies that FacT's numbers were made with

    config.epochs = 100
    config.warmup_epochs = placeholder(int)  # None: a tenth of the epochs, 10 at most
    config.batch_size = 64
    config.eval_batch_size = 256
    config.eval_every = 10  # epochs between test evaluations of protocol 'paper'
    config.learning_rate = 1e-3
    config.weight_decay = 1e-4
    config.optimizer = "adamw"  # or 'sgd', with momentum 0.9
    config.decay_vectors = True  # weight decay on biases, scales and shifts, too
    config.dropout_rate = 0.1
    config.drop_path_rate = 0.1
    config.augment = False  # few-shot tasks: crops, flips, RandAugment
    config.mixup = 0.0
    config.cutmix = 0.0
    config.label_smoothing = 0.0
    config.erasing = 0.0
    config.train_limit = 0  # images; 0: all
    config.eval_limit = 0
    return config
