"""FacT-TK with the released rank and scale of every task, as published: best of ten test
evaluations, JPEG-75 copies, ImageNet normalisation (group mean 75.6 %).

    python -m experiments.vtab --config tk_paper

Source of the settings: JieShibo/PETL-ViT, FacT/configs; on average 68,985 factors.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab(
        "fact_tk",
        protocol="paper",
        jpeg_quality=75,
        per_task=base.released("fact_tk"),
        published="fact_tk_le32",
    )
