"""AdaptFormer of width 8 on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config adaptformer
    python -m experiments.vtab --config adaptformer:petl

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
    forms = {
        "adaptformer": {"scale": 0.1, "published": "adaptformer"},
        "petl": {
            "form": "petl",
            "normalisation": "none",
            "scales": base.SCALES,
            "published": "adaptformer_unnormalised",
        },
    }
    return base.vtab("adaptformer", width=8, **base.form("adaptformer", arg, forms))
