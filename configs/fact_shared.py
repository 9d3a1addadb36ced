"""FacT-TT with U and V shared within each layer only: rank 4, 76,032 numbers, on VTAB-1K.

    python -m experiments.vtab --config fact_shared

No published numbers: a relative of FacT-TT, which shares them in the whole net, for asking what
sharing costs. At rank 4 it is of about the size of FacT-TT of rank 16. `--config.fact_shared.share=
kind` shares them among all queries, all keys and so on: as many numbers. Training and the five
scales, compared on val200, as in configs/tt_rank16.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("fact_shared", rank=4, share="layer", scales=base.SCALES)
