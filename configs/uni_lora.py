"""Uni-LoRA of 1,000 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config uni_lora

No published numbers are stored. Training and the five scales, compared on val200, as in
configs/tk_rank32.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("uni_lora", numbers=1000, scales=base.SCALES)
