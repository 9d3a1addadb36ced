"""VPT-Deep on the 19 tasks of VTAB-1K: prompts before every block, as many as VPT took per task.

    python -m experiments.vtab --config vpt_deep

Published group mean: 71.97 %. SGD; VPT's base rates x batch / 256 (a batch of 64; its is 64 or 128)
and its weight decays are compared on val200: 40 candidates. The lengths are fixed; how VPT found
them, its code does not show. They give 678,104 numbers on average, where tables print 0.53 to
0.64M. VPT repeats the final training with seeds 42, 44, 82, 100, 800; its rate begins and ends at
0, ours at 1e-6 and 1e-5.
Source: KMnP/vpt, tune_vtab.py, configs/base-prompt.yaml, demo.ipynb (dropout; three of the
lengths); lengths as re-used by visinf/adapter_plus, conf/experiment/vtab/vpt.yaml.
"""

from ml_collections import ConfigDict

from configs import base, linear

TRAINING = {  # VPT's, of prompts; the head's bias does not decay, the prompts do
    "optimizer": "sgd",
    "learning_rates": base.vpt_rates(linear.BASE_RATES),
    "weight_decays": linear.WEIGHT_DECAYS,
    "decay_vectors": False,
    "dropout_rate": 0.1,
    "drop_path_rate": 0.0,
}


def get_config() -> ConfigDict:
    return base.vtab(
        "vpt_deep", **TRAINING, per_task=base.released("vpt_deep"), published="vpt_deep"
    )
