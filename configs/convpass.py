"""Convpass of width 8, 327,552 numbers, on the 19 tasks of VTAB-1K.

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

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
RELEASED = {  # task: scale, Xavier's rule
    "cifar": (0.1, False),
    "caltech101": (1.0, False),
    "dtd": (0.01, True),
    "oxford_flowers102": (0.1, True),
    "oxford_iiit_pet": (1.0, True),
    "svhn": (100.0, True),
    "sun397": (0.1, False),
    "patch_camelyon": (10.0, False),
    "eurosat": (10.0, False),
    "resisc45": (10.0, False),
    "diabetic_retinopathy": (1.0, False),
    "clevr_count": (1.0, False),
    "clevr_dist": (0.1, True),
    "dmlab": (10.0, False),
    "kitti": (10.0, True),
    "dsprites_loc": (100.0, True),
    "dsprites_ori": (0.1, True),
    "smallnorb_azi": (100.0, True),
    "smallnorb_ele": (1.0, True),
}
RELEASED_ATTENTION = {  # task: scale, Xavier's rule
    "cifar": (0.1, True),
    "caltech101": (100.0, True),
    "dtd": (0.1, True),
    "oxford_flowers102": (1.0, True),
    "oxford_iiit_pet": (1.0, True),
    "svhn": (100.0, True),
    "sun397": (0.1, True),
    "patch_camelyon": (10.0, True),
    "eurosat": (10.0, True),
    "resisc45": (100.0, True),
    "diabetic_retinopathy": (0.1, True),
    "clevr_count": (10.0, True),
    "clevr_dist": (1.0, True),
    "dmlab": (10.0, True),
    "kitti": (10.0, True),
    "dsprites_loc": (10.0, True),
    "dsprites_ori": (1.0, True),
    "smallnorb_azi": (100.0, True),
    "smallnorb_ele": (1.0, True),
}
_FORMS = {
    "convpass": {"attention_only": False, "published": "convpass"},
    "released": {"attention_only": False, "published": "convpass", "per_task": RELEASED},
    "released_attention": {
        "attention_only": True,
        "published": "convpass_attn",
        "per_task": RELEASED_ATTENTION,
    },
}


def get_config(arg: str = "convpass") -> ConfigDict:
    if arg not in _FORMS:
        raise ValueError(f"convpass.py:{arg}: expected one of {', '.join(_FORMS)}.")
    config = base.get_config()
    config.methods = "convpass"
    settings = {"width": 8, "scales": SCALES, **_FORMS[arg]}
    if "per_task" in settings:
        settings["per_task"] = {
            task: {"scales": (scale,), "xavier": xavier}
            for task, (scale, xavier) in settings["per_task"].items()
        }
    config.convpass = base.method("convpass", **settings)
    return config
