"""AdaptFormer of width 8 on the 19 tasks of VTAB-1K.

`adaptformer.py`: its own form, 156,768 numbers, scale 0.1 as in its code; nothing to choose. Group
mean 74.75 % at this size, the best test epoch, run by others in NOAH's protocol with a scale that
is not known. Its authors did not report VTAB-1K.
Source: ShoufaChen/AdaptFormer, models/adapter.py, main_image.py.

`adaptformer.py:petl`: PETL-ViT's, without biases, 147,456 numbers, on inputs that are not
normalised; 76.2 % (FPET's table; its width is not known). No scale is published for it:
that code's files have one per task, but for weights of one bit, at widths 1 and 32, and do not say
how it was chosen. The few read, of AdaptFormer and LoRA, go from 0.01 to 100; here five of that
range are compared on val200.
Source: JieShibo/PETL-ViT, binary_adapter/{main,adaptformer}.py, configs/adaptformer (bdfcee9).
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
    config.adaptformer = base.method("adaptformer", width=8, **own)
    return config
