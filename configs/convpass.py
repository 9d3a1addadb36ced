"""Convpass of width 8, 327,552 numbers, on the 19 tasks of VTAB-1K.

Published group mean: 76.56 %, the best test epoch.
`convpass.py`: five scales are compared on val200; the convolution begins as the identity.
`--config.convpass.attention_only=True` is Convpass-attn: 163,776 numbers, 75.83 %.
`convpass.py:released`: scale, and whether the convolution begins by Xavier's rule, of the released
files; how they were chosen, those do not say. 11 of 19 could be read: the five scales for cifar,
caltech101, pets, svhn, eurosat, resisc45, clevr_dist and smallnorb_azi.
`convpass.py:released_attention`: Convpass-attn, 8 of 19. All of them have Xavier's rule: so have
the others here, with the five scales.
Source: JieShibo/PETL-ViT, convpass/vtab/train.py and configs/{convpass,convpass_attn} (0f1c47f).
"""

from ml_collections import ConfigDict

from configs import base

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
RELEASED = {  # scale, Xavier's rule
    "dtd": (0.01, True), "oxford_flowers102": (0.1, True), "sun397": (0.1, False),
    "patch_camelyon": (10.0, False), "diabetic_retinopathy": (1.0, False),
    "clevr_count": (1.0, False), "dmlab": (10.0, False), "kitti": (10.0, True),
    "dsprites_loc": (100.0, True), "dsprites_ori": (0.1, True), "smallnorb_ele": (1.0, True),
}  # fmt: skip
RELEASED_ATTENTION = {
    "cifar": (0.1, True), "oxford_flowers102": (1.0, True), "sun397": (0.1, True),
    "resisc45": (100.0, True), "diabetic_retinopathy": (0.1, True),
    "dmlab": (10.0, True), "dsprites_loc": (10.0, True), "smallnorb_azi": (100.0, True),
}  # fmt: skip
_FORMS = {
    "convpass": {"attention_only": False, "published": "convpass"},
    "released": {"attention_only": False, "published": "convpass", "per_task": RELEASED},
    "released_attention": {
        "attention_only": True, "xavier": True, "published": "convpass_attn",
        "per_task": RELEASED_ATTENTION,
    },
}  # fmt: skip


def get_config(arg: str = "convpass") -> ConfigDict:
    if arg not in _FORMS:
        raise ValueError(f"convpass.py:{arg}: expected one of {', '.join(_FORMS)}.")
    config = base.get_config()
    config.methods = "convpass"
    own = {"width": 8, "scales": SCALES, **_FORMS[arg]}
    if "per_task" in own:
        own["per_task"] = {
            task: {"scales": (scale,), "xavier": xavier}
            for task, (scale, xavier) in own["per_task"].items()
        }
    config.convpass = base.method("convpass", **own)
    return config
