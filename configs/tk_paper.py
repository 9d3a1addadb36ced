"""FacT-TK with the released rank and scale of every task, as published: best of ten test
evaluations, JPEG-75 copies, ImageNet normalisation (group mean 75.6 %).

Source of the settings: JieShibo/PETL-ViT, FacT/configs; on average 68,985 factors.
"""

from ml_collections import ConfigDict

from configs import base
from fact_jax.report.published import reference_settings


def get_config() -> ConfigDict:
    config = base.get_config()
    config.protocol = "paper"
    config.jpeg_quality = 75
    config.methods = "fact_tk"
    config.fact_tk = base.method(
        "fact_tk", per_task=reference_settings("tk"), published="fact_tk_le32"
    )
    return config
