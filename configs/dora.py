"""DoRA of rank 8 on query and value, 313,344 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config dora

No published numbers are stored. Training and the five scales, compared on val200, as in
configs/tk_rank32.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("dora", rank=8, scales=base.SCALES)
