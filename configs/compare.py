"""Sixteen methods in one sweep.

    python -m experiments.vtab --config configs/compare.py --workdir runs/compare
    python -m experiments.vtab --config configs/compare.py:vtab --workdir runs/vtab
    python -m experiments.vtab --config configs/compare.py:dinov2 --config.weights=FILE \\
      --workdir runs/dinov2

`quickstart` (the default): three offline tasks, seeds 0, 1, 2, the bundled `vit_mini`, 20
epochs of AdamW. Every method chooses among three learning rates on val200, and nothing else: the
same three, but a tenth of them where all weights move. Only NOAH also trains a supernet and
searches among up to 30 architectures there, which the table's grid shows ("3 + 30"). Ranks, widths
and prompts suit a ViT of width 128.
`dinov2`: the same, one seed, from DINOv2-S at 56 pixels, a third of the rates but the head's alone.
`vtab`: the 19 tasks, each method with the settings of its own config. Their grids differ in size
(1 to 40), which the results report. Normalisation is ImageNet's for all, SSF too.
Methods published after FacT have settings in each: --config.methods=fact_tt,metatt,cara.
"""

import importlib

from ml_collections import ConfigDict

from configs import base

CONFIGS = {"fact_tt": "tt_rank16", "fact_tk": "tk_rank32"}  # not called like their method

RATES = (3e-3, 1e-2, 3e-2)
SMALL = {  # settings on small ViTs
    "full": {},
    "linear": {},
    "bitfit": {},
    "vpt_shallow": {"num_tokens": 8},
    "vpt_deep": {"num_tokens": 8},
    "adapter": {"width": 8},
    "adaptformer": {"width": 8, "scale": 0.1},
    "lora": {"rank": 8, "sites": "q,k,v", "shared_input": True},
    "ssf": {},
    "convpass": {"width": 8},
    "repadapter": {"width": 8},
    "noah": {
        "widths": (1, 4, 8),
        "supernet_epochs": 40,
        "supernet_learning_rate": 3e-3,
        "population": 10,
        "parents": 4,
        "mutations": 4,
        "crossovers": 4,
        "generations": 3,
    },
    "fact_tt": {"rank": 16},
    "fact_tk": {"rank": 16, "mlp_cores": "released"},
    "fact_cp": {"rank": 32},
    "fact_shared": {"rank": 4},
}
FAMILY = {  # published after FacT; `--config.methods` names them
    "metatt": {"rank": 16},
    "metatt_heads": {"rank": 16},
    "metatt_tasks": {"rank": 16},
    "lorta": {"rank": 16},
    "cara": {"rank": 16},
    "efft": {"rank": 8},
    "uni_lora": {"numbers": 4000},
    "adapter_plus": {"width": 8},
    "dora": {"rank": 8},
}


def _small(config: ConfigDict, factor: float, noah_limit: int) -> None:
    config.tasks = "digits,fashion,location"
    config.epochs = 20
    for name, settings in (SMALL | FAMILY).items():
        share = {"full": factor / 10, "linear": 1.0}.get(name, factor)
        rates = tuple(share * rate for rate in RATES)
        config[name] = base.method(name, **settings, learning_rates=rates)
    config.noah.limit = noah_limit  # about two thirds of the largest


def get_config(arg: str = "quickstart") -> ConfigDict:
    config = base.get_config()
    config.methods = ",".join(SMALL)
    if arg == "vtab":
        for name in SMALL | FAMILY:
            alone = importlib.import_module(f"configs.{CONFIGS.get(name, name)}").get_config()
            config[name] = alone[name]
    elif arg == "quickstart":
        _small(config, 1.0, noah_limit=30_000)
        config.variant, config.image_size, config.seeds = "vit_mini", 32, (0, 1, 2)
    elif arg == "dinov2":
        _small(config, 1 / 3, noah_limit=180_000)
        config.variant, config.image_size, config.seeds = "dinov2_s14", 56, (0,)
    else:
        raise ValueError(f"compare.py:{arg}: expected 'quickstart', 'vtab' or 'dinov2'.")
    return config
