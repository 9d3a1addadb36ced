"""NOAH on the 19 tasks of VTAB-1K: supernet, search on val200, retraining of what was found.

Published group mean: 75.48 %, the best test epoch; its 19 subnets have 360,134 numbers on average.
The supernet is trained for 500 epochs at 5e-4 on train800; 15 generations of 50 architectures of at
most 640,000 numbers are measured on val200; the best is trained anew for 100 epochs at 1e-3 on
train800val200. Weight decay 1e-4, not on biases. The search is a choice among up to 750 candidates,
though only one training pays for them. Widths 1, 5, 10 are those of the released subnets; the
released file of the VTAB supernet has the few-shot ones (NOAH's issue 23).
Source: ZhangYuanhan-AI/NOAH, configs/NOAH/VTAB/{supernet,search,subnet}.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.methods = "noah"
    config.noah = ConfigDict(
        {
            "widths": (1, 5, 10),
            "supernet_epochs": 500,
            "supernet_learning_rate": 5e-4,
            "limit": 640_000,
            "population": 50,
            "parents": 10,
            "mutations": 25,
            "crossovers": 25,
            "generations": 15,
            "decay_vectors": False,
            "published": "noah",
        }
    )
    return config
