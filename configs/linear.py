"""Linear probing on the 19 tasks of VTAB-1K: the head alone, on frozen features.

    python -m experiments.vtab --config linear

Published group mean: 57.64 % (VPT's table). Rates and weight decays are VPT's, with SGD: its base
rates x batch / 256, the batch being 64 here and not its 1,024. The 40 candidates are compared on
val200. Its schedule ends at rate 0 and its warm-up begins there; ours at 1e-5 and 1e-6.
Source: KMnP/vpt, tune_vtab.py, configs/base-linear.yaml, src/solver/optimizer.py.
"""

from ml_collections import ConfigDict

from configs import base

# The smallest first: as in VPT's code, it is taken where several are equally good on val200.
BASE_RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)
WEIGHT_DECAYS = (0.01, 1e-3, 1e-4, 0.0)


def get_config() -> ConfigDict:
    return base.vtab(
        "linear",
        optimizer="sgd",
        learning_rates=base.vpt_rates(BASE_RATES),
        weight_decays=WEIGHT_DECAYS,
        decay_vectors=False,  # the head's bias
        dropout_rate=0.0,
        drop_path_rate=0.0,
        published="linear",
    )
