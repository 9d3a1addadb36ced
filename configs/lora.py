"""LoRA of rank 8 on the 19 tasks of VTAB-1K, 294,912 numbers in either form.

    python -m experiments.vtab --config lora
    python -m experiments.vtab --config lora:petl

`lora.py`: NOAH's, one A for query, key and value; group mean 74.60 %, the best test epoch. AdamW at
1e-3, weight decay 1e-4 but not on biases; nothing to choose. Two things are not NOAH's: dropout
acts on the r values behind A, there on A's input, and the head begins as PyTorch's Linear does,
there as N(0, 0.02) with a zero bias.
Source: ZhangYuanhan-AI/NOAH, configs/LoRA/VTAB/slurm_train_lora_vtab.sh as of fde4c09; a later
commit has 5e-3 there.

`lora.py:petl`: PETL-ViT's, pairs of query and value, on inputs that are not normalised; 75.7 %
(FPET's table; its rank is not known). No scale is published for it: that code's files have one per
task, but for weights of one bit, at ranks 1 and 32, and do not say how it was chosen. The few read,
of LoRA and AdaptFormer, go from 0.01 to 100; here five of that range are compared on val200.
Source: JieShibo/PETL-ViT, binary_adapter/{main,lora}.py, configs/lora (bdfcee9).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "noah") -> ConfigDict:
    forms = {
        "noah": {
            "sites": "q,k,v",
            "shared_input": True,
            "decay_vectors": False,
            "published": "lora",
        },
        "petl": {
            "normalisation": "none",
            "scales": base.SCALES,
            "published": "lora_unnormalised",
        },
    }
    return base.vtab("lora", rank=8, **base.form("lora", arg, forms))
