"""MetaTT-4D of rank 16, 30,720 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config metatt

No published numbers are stored. Training and the five scales, compared on val200, as in
configs/tk_rank32.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("metatt", rank=16, scales=base.SCALES)
