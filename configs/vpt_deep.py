"""VPT-Deep on the 19 tasks of VTAB-1K: prompts before every block, as many as VPT took per task.

Published group mean: 71.97 %. SGD; VPT's base rates x batch / 256 (a batch of 64; its is 64 or 128)
and its weight decays are compared on val200: 40 candidates. The lengths are fixed; how VPT found
them, its code does not show. They give 678,104 numbers on average, where tables print 0.53 to
0.64M. VPT repeats the final training with seeds 42, 44, 82, 100, 800; its rate begins and ends at
0, ours at 1e-6 and 1e-5.
Source: KMnP/vpt, tune_vtab.py, configs/base-prompt.yaml, demo.ipynb (dropout; three of the
lengths); lengths as re-used by visinf/adapter_plus, conf/experiment/vtab/vpt.yaml.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base, linear

NUM_TOKENS = {
    "cifar": 10, "caltech101": 10, "dtd": 10, "oxford_flowers102": 1, "oxford_iiit_pet": 1,
    "svhn": 50, "sun397": 5,
    "patch_camelyon": 100, "eurosat": 100, "resisc45": 10, "diabetic_retinopathy": 1,
    "clevr_count": 100, "clevr_dist": 200, "dmlab": 100, "kitti": 100, "dsprites_loc": 100,
    "dsprites_ori": 100, "smallnorb_azi": 200, "smallnorb_ele": 200,
}  # fmt: skip


def settings(config: ConfigDict) -> dict[str, Any]:
    """VPT's training of prompts; the head's bias does not decay, the prompts do."""
    return {
        "optimizer": "sgd",
        "learning_rates": tuple(rate * config.batch_size / 256 for rate in linear.BASE_RATES),
        "weight_decays": (0.01, 1e-3, 1e-4, 0.0),
        "decay_vectors": False,
        "dropout_rate": 0.1,
        "drop_path_rate": 0.0,
    }


def get_config() -> ConfigDict:
    config = base.get_config()
    config.methods = "vpt_deep"
    per_task = {task: {"num_tokens": number} for task, number in NUM_TOKENS.items()}
    config.vpt_deep = base.method(
        "vpt_deep", **settings(config), per_task=per_task, published="vpt_deep"
    )
    return config
