"""NOAH on the 19 tasks of VTAB-1K: supernet, search on val200, retraining of what was found.

Published group mean: 75.48 %, the best test epoch; its 19 subnets have 360,134 numbers on average.
The supernet is trained for 500 epochs at 5e-4 on train800; 15 generations of 50 architectures of at
most 640,000 numbers are measured on val200; the best is trained anew for 100 epochs at 1e-3 on
train800val200. Weight decay 1e-4, not on biases. The search is a choice among up to 750 candidates,
though only one training pays for them. Widths 1, 5, 10 and a table of 100 positions are those of
supernet-B_prompt_VPT.yaml (0253253); the released scripts name the few-shot file instead (issue 23)
and leave the limit to whoever starts them: 640,000 is the default of evolution.py.
`noah.py:released`: no search, the 19 released subnets are retrained. They come without the limit,
the seed and the accuracy of their search, and some rows are equal: prompts and LoRA of dtd and of
flowers; the adapters of dtd, dsprites_loc and smallnorb_ele, and of clevr_count and dsprites_ori.
Source: ZhangYuanhan-AI/NOAH, configs/NOAH/VTAB/{supernet,search,subnet}; subnets: RETRAIN in
experiments/NOAH/subnet/VTAB/ViT-B_prompt_*.yaml as of 0253253 (ded6834 has others, up to width 50).
"""

from ml_collections import ConfigDict

from configs import base

FAMILIES = ("prompts", "lora", "adapters")
RELEASED = {  # a row a family, a width a block
    "cifar": (
        (10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10),
        (10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1),
        (5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1),
    ),
    "caltech101": (
        (5, 10, 1, 5, 10, 1, 10, 1, 10, 1, 10, 1),
        (1, 10, 10, 10, 5, 10, 10, 10, 5, 1, 10, 1),
        (10, 1, 5, 10, 10, 1, 5, 5, 10, 1, 5, 10),
    ),
    "dtd": (
        (10, 5, 1, 1, 5, 10, 5, 1, 1, 5, 1, 1),
        (10, 5, 1, 1, 5, 10, 5, 1, 1, 5, 1, 1),
        (1, 1, 1, 10, 1, 1, 10, 10, 10, 10, 10, 1),
    ),
    "oxford_flowers102": (
        (10, 10, 5, 5, 1, 10, 1, 5, 10, 1, 5, 10),
        (10, 10, 5, 5, 1, 10, 1, 5, 10, 1, 5, 10),
        (5, 1, 5, 5, 1, 1, 10, 5, 5, 10, 5, 10),
    ),
    "oxford_iiit_pet": (
        (10, 5, 5, 10, 1, 10, 10, 10, 10, 5, 10, 10),
        (10, 1, 1, 10, 5, 1, 1, 5, 10, 10, 1, 10),
        (1, 5, 5, 5, 5, 10, 1, 5, 10, 1, 1, 5),
    ),
    "svhn": (
        (10, 5, 5, 10, 5, 5, 5, 5, 5, 5, 5, 5),
        (5, 5, 5, 10, 5, 5, 5, 10, 10, 10, 10, 5),
        (5, 5, 5, 5, 5, 10, 5, 10, 5, 5, 5, 5),
    ),
    "sun397": (
        (5, 1, 10, 5, 5, 10, 1, 5, 1, 1, 1, 1),
        (10, 10, 5, 5, 1, 1, 10, 1, 1, 1, 1, 10),
        (10, 5, 1, 1, 1, 10, 5, 5, 1, 1, 5, 1),
    ),
    "patch_camelyon": (
        (10, 10, 5, 10, 1, 10, 10, 10, 5, 1, 5, 5),
        (10, 10, 1, 10, 1, 1, 5, 5, 5, 1, 5, 5),
        (5, 1, 10, 5, 5, 1, 1, 10, 1, 5, 1, 5),
    ),
    "eurosat": (
        (10, 10, 10, 10, 10, 1, 5, 5, 10, 10, 5, 10),
        (10, 1, 10, 10, 1, 5, 10, 1, 1, 1, 10, 1),
        (10, 10, 5, 1, 10, 1, 10, 5, 10, 1, 10, 10),
    ),
    "resisc45": (
        (5, 5, 10, 1, 5, 1, 5, 10, 1, 1, 5, 1),
        (10, 10, 5, 5, 5, 10, 10, 10, 1, 5, 1, 5),
        (5, 5, 5, 1, 5, 1, 10, 5, 5, 1, 5, 5),
    ),
    "diabetic_retinopathy": (
        (10, 1, 5, 10, 1, 5, 5, 10, 5, 10, 5, 5),
        (1, 1, 10, 5, 5, 10, 1, 10, 10, 5, 10, 1),
        (1, 1, 5, 5, 10, 10, 10, 5, 1, 10, 10, 1),
    ),
    "clevr_count": (
        (10, 1, 5, 10, 5, 1, 10, 5, 5, 5, 10, 1),
        (1, 1, 10, 5, 10, 10, 10, 1, 5, 1, 10, 1),
        (1, 10, 10, 10, 10, 1, 5, 10, 10, 10, 1, 1),
    ),
    "clevr_dist": (
        (10, 1, 1, 10, 5, 10, 5, 1, 5, 10, 5, 5),
        (5, 1, 10, 5, 10, 10, 1, 1, 5, 10, 1, 10),
        (1, 1, 1, 10, 1, 1, 1, 10, 5, 1, 10, 10),
    ),
    "dmlab": (
        (1, 10, 5, 1, 10, 10, 5, 10, 10, 1, 1, 1),
        (10, 5, 1, 5, 10, 10, 5, 5, 5, 10, 10, 1),
        (5, 1, 5, 1, 5, 1, 5, 5, 5, 10, 10, 10),
    ),
    "kitti": (
        (1, 5, 10, 1, 10, 5, 1, 1, 1, 5, 5, 5),
        (5, 10, 10, 10, 1, 10, 5, 5, 10, 5, 10, 1),
        (5, 1, 10, 10, 1, 10, 1, 1, 5, 10, 5, 5),
    ),
    "dsprites_loc": (
        (5, 10, 1, 10, 10, 5, 5, 1, 5, 5, 10, 1),
        (1, 1, 1, 1, 10, 10, 1, 10, 5, 1, 5, 10),
        (1, 1, 1, 10, 1, 1, 10, 10, 10, 10, 10, 1),
    ),
    "dsprites_ori": (
        (5, 5, 1, 1, 10, 5, 1, 10, 10, 10, 10, 10),
        (1, 10, 1, 10, 1, 5, 10, 10, 5, 5, 1, 5),
        (1, 10, 10, 10, 10, 1, 5, 10, 10, 10, 1, 1),
    ),
    "smallnorb_azi": (
        (1, 10, 1, 10, 1, 5, 10, 10, 1, 10, 10, 5),
        (10, 5, 1, 5, 1, 1, 5, 5, 10, 1, 1, 10),
        (5, 1, 1, 1, 5, 5, 1, 10, 1, 1, 5, 1),
    ),
    "smallnorb_ele": (
        (10, 1, 1, 1, 1, 5, 10, 10, 10, 10, 1, 10),
        (10, 1, 1, 1, 5, 5, 10, 5, 1, 10, 1, 1),
        (1, 1, 1, 10, 1, 1, 10, 10, 10, 10, 10, 1),
    ),
}  # fmt: skip


def get_config(arg: str = "noah") -> ConfigDict:
    config = base.get_config()
    if arg == "released":
        config.methods = "noah_subnet"
        per_task = {task: dict(zip(FAMILIES, rows, strict=True)) for task, rows in RELEASED.items()}
        config.noah_subnet = base.method(
            "noah_subnet", decay_vectors=False, per_task=per_task, published="noah"
        )
    elif arg == "noah":
        config.methods = "noah"
        config.noah = base.method(
            "noah",
            widths=(1, 5, 10),
            prompt_positions=100,
            supernet_epochs=500,
            supernet_learning_rate=5e-4,
            limit=640_000,
            population=50,
            parents=10,
            mutations=25,
            crossovers=25,
            generations=15,
            decay_vectors=False,
            published="noah",
        )
    else:
        raise ValueError(f"noah.py:{arg}: expected 'noah' or 'released'.")
    return config
