"""FacT-CP of rank 32, 53,760 numbers, on the 19 tasks of VTAB-1K. No published numbers.

    python -m experiments.vtab --config fact_cp

A relative of FacT-TT and FacT-TK that is not in the paper; training and the five scales, compared
on val200, as in configs/tk_rank32.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("fact_cp", rank=32, scales=base.SCALES)
