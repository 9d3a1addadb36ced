"""NOAH on the 19 tasks of VTAB-1K: supernet, search on val200, retraining of what was found.

    python -m experiments.vtab --config noah
    python -m experiments.vtab --config noah:released

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


def get_config(arg: str = "noah") -> ConfigDict:
    search = {
        "widths": (1, 5, 10),
        "prompt_positions": 100,
        "supernet_epochs": 500,
        "supernet_learning_rate": 5e-4,
        "limit": 640_000,
        "population": 50,
        "parents": 10,
        "mutations": 25,
        "crossovers": 25,
        "generations": 15,
    }
    forms = {
        "noah": {"name": "noah", **search},
        "released": {"name": "noah_subnet", "per_task": base.released("noah_subnet")},
    }
    return base.vtab(**base.form("noah", arg, forms), decay_vectors=False, published="noah")
