"""BitFit on the 19 tasks of VTAB-1K: every bias of the ViT, 102,912 numbers.

Published group mean: 65.22 % (VPT's table). VPT trained it as it trained all weights, so the
settings and their 4 candidates, compared on val200, are those of configs/full.py; decay acts on the
head's kernel alone. An independent re-run has 74.54 % (OSU-MLB/ViT_PEFT_Vision): the published row
is low.
Source: KMnP/vpt, demo.ipynb ("Bias"), tune_vtab.py.
"""

from ml_collections import ConfigDict

from configs import base, full


def get_config() -> ConfigDict:
    config = base.get_config()
    config.methods = "bitfit"
    config.bitfit = base.method("bitfit", **full.settings(config), published="bitfit")
    return config
