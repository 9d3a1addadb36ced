"""AdaptFormer of width 8 on the 19 tasks of VTAB-1K.

`adaptformer.py`: its own form, 156,768 numbers, scale 0.1 as in its code; nothing to choose. Group
mean 74.75 % at this size, the best test epoch, run by others in NOAH's protocol with a scale that
is not known. Its authors did not report VTAB-1K.
Source: ShoufaChen/AdaptFormer, models/adapter.py, main_image.py.

`adaptformer.py:petl`: PETL-ViT's, without biases, 147,456 numbers, on inputs that are not
normalised; 76.2 % (FPET's table; its width is not known). That code has a scale per task, from 0.01
to 100, and does not say how it was chosen; here the five are compared on val200.
Source: JieShibo/PETL-ViT, binary_adapter/adaptformer.py.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "adaptformer") -> ConfigDict:
    config = base.get_config()
    config.methods = "adaptformer"
    if arg == "petl":
        config.normalisation = "none"
        scales = (0.01, 0.1, 1.0, 10.0, 100.0)
        own = {"form": "petl", "scales": scales, "published": "adaptformer_unnormalised"}
    elif arg == "adaptformer":
        own = {"scale": 0.1, "published": "adaptformer"}
    else:
        raise ValueError(f"adaptformer.py:{arg}: expected 'adaptformer' or 'petl'.")
    config.adaptformer = ConfigDict({"width": 8, **own})
    return config
