"""FacT-TT of rank 4: 8,448 factors, the paper's 8K version (group mean 73.5 %, best test epoch).

    python -m experiments.vtab --config tt_tiny

The five scales of configs/tt_rank16.py are compared on val200.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("fact_tt", rank=4, scales=base.SCALES, published="fact_tt_4")
