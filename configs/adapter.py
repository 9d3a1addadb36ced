"""NOAH's adapter of width 8, 156,768 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config adapter

Published group mean: 73.86 %, the best test epoch. AdamW at 1e-3, weight decay 1e-4 but not on
biases, as timm's factory has it; nothing to choose. `--config.protocol=paper
--config.jpeg_quality=75` counts as published.
Source: ZhangYuanhan-AI/NOAH, configs/Adapter/VTAB/slurm_train_adapter_vtab.sh as of fde4c09; a
later commit has 5e-3 there.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("adapter", width=8, decay_vectors=False, published="adapter")
