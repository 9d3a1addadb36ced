"""Convpass of width 8, 327,552 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config convpass
    python -m experiments.vtab --config convpass:released
    python -m experiments.vtab --config convpass:released_attention

Published group mean: 76.56 %, the best test epoch.
`convpass.py`: five scales are compared on val200; the convolution begins as the identity.
`--config.convpass.attention_only=True` is Convpass-attn: 163,776 numbers, 75.83 %.
`convpass.py:released`: the released scale of every task, and whether its convolution begins by
Xavier's rule. The released files do not say how these were chosen.
`convpass.py:released_attention`: the same for Convpass-attn; Xavier's rule on all tasks.
Source: JieShibo/PETL-ViT, convpass/vtab/train.py and configs/{convpass,convpass_attn} (0f1c47f).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "convpass") -> ConfigDict:
    forms = {
        "convpass": {"attention_only": False, "published": "convpass"},
        "released": {
            "attention_only": False,
            "published": "convpass",
            "per_task": base.released("convpass"),
        },
        "released_attention": {
            "attention_only": True,
            "published": "convpass_attn",
            "per_task": base.released("convpass_attention"),
        },
    }
    settings = base.form("convpass", arg, forms)
    return base.vtab("convpass", width=8, scales=base.SCALES, **settings)
