"""Full fine-tuning on the 19 tasks of VTAB-1K: all 85.8M weights of ViT-B/16.

    python -m experiments.vtab --config full

Published group mean: 68.97 % (VPT's table). Rates are VPT's, base rates x batch / 256 with a batch
of 64, compared on val200: 4 candidates. Its tune_vtab.py tries four weight decays, too, but its
optimiser takes 0.01 for any that is not zero, and SGD for zero; here it is 0.01. Not the same: its
gains of the norms decay, its MLPs have dropout 0.1, and its rate begins and ends at 0, ours at 1e-6
and 1e-5.
Source: KMnP/vpt, tune_vtab.py, configs/base-finetune.yaml, src/solver/optimizer.py.
"""

from ml_collections import ConfigDict

from configs import base

BASE_RATES = (1e-4, 5e-4, 1e-3, 5e-3)  # the smallest first, see configs/linear.py
TRAINING = {  # VPT's, of the ViT's own weights
    "learning_rates": base.vpt_rates(BASE_RATES),
    "weight_decay": 0.01,
    "decay_vectors": False,
    "warmup_epochs": 5,
    "drop_path_rate": 0.0,
}


def get_config() -> ConfigDict:
    return base.vtab("full", **TRAINING, published="full")
