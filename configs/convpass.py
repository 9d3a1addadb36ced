"""Convpass of width 8, 327,552 numbers, on the 19 tasks of VTAB-1K.

Published group mean: 76.56 %, the best test epoch. The released files give a scale from 0.01 to 100
per task, and whether its convolution begins as the identity or by Xavier's rule; how they were
chosen is not said (11 of the 19 could be read). Here it begins as the identity, and the five scales
are compared on val200. `--config.convpass.attention_only=True` is Convpass-attn: 163,776 numbers,
75.83 %.
Source: JieShibo/PETL-ViT, convpass/vtab/train.py and configs/convpass.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.methods = "convpass"
    config.convpass = ConfigDict(
        {
            "width": 8,
            "scales": (0.01, 0.1, 1.0, 10.0, 100.0),
            "attention_only": False,
            "published": "convpass",
        }
    )
    return config
