"""BitFit on the 19 tasks of VTAB-1K: every bias of the ViT, 102,912 numbers.

    python -m experiments.vtab --config bitfit

Published group mean: 65.22 % (VPT's table). VPT trained it as it trained all weights, so the
settings and their 4 candidates, compared on val200, are those of configs/full.py; decay acts on the
head's kernel alone. An independent re-run has 74.54 % (OSU-MLB/ViT_PEFT_Vision): the published row
is low.
Source: KMnP/vpt, demo.ipynb ("Bias"), tune_vtab.py.
"""

from ml_collections import ConfigDict

from configs import base, full


def get_config() -> ConfigDict:
    return base.vtab("bitfit", **full.TRAINING, published="bitfit")
