"""VPT-Shallow on the 19 tasks of VTAB-1K: 100 prompts at the input, 76,800 numbers.

    python -m experiments.vtab --config vpt_shallow

Published group mean: 67.82 %, with prompt lengths per task that could not be read (0.063M numbers
on average, 82 prompts). 100 for all is the size of the independent re-run with 66.05 %
(OSU-MLB/ViT_PEFT_Vision). SGD, rates and weight decays as in configs/vpt_deep.py, without dropout:
40 candidates, compared on val200. VPT's script knows base rates of 100 to 1,000, too.
Source: KMnP/vpt, tune_vtab.py, demo.ipynb.
"""

from ml_collections import ConfigDict

from configs import base, vpt_deep


def get_config() -> ConfigDict:
    settings = {**vpt_deep.TRAINING, "dropout_rate": 0.0, "num_tokens": 100}
    return base.vtab("vpt_shallow", **settings, published="vpt_shallow")
