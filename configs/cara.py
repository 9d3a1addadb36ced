"""CaRA of rank 16, 45,024 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config cara

No published numbers are stored. Training and the five scales, compared on val200, as in
configs/tk_rank32.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("cara", rank=16, scales=base.SCALES)
