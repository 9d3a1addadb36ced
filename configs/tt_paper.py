"""FacT-TT with the released rank and scale of every task, as published: best of ten test
evaluations, JPEG-75 copies, ImageNet normalisation (group mean 75.3 %).

Source of the settings: JieShibo/PETL-ViT, FacT/configs; on average 39,734 factors.
"""

from ml_collections import ConfigDict

from configs import base
from fact_jax.report.published import reference_settings


def get_config() -> ConfigDict:
    config = base.get_config()
    config.protocol = "paper"
    config.jpeg_quality = 75
    config.methods = "fact_tt"
    config.fact_tt = base.method(
        "fact_tt", per_task=reference_settings("tt"), published="fact_tt_le16"
    )
    return config
