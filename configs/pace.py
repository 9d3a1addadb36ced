"""PACE's rule of training with FacT-TT: logits under two draws of noise shall agree.

    fact-jax vtab --config pace --workdir DIR
    fact-jax vtab --config pace:vtab --workdir DIR

Source: Ni, Zhang and Koniusz, NeurIPS 2024; schedule, weight 1 and noise 1.2 are those of the
released command for CIFAR (MaxwellYaoNi/PACE, Vision/README.md: rate 1e-3, decay 1e-4, 300 epochs,
batches of 64). Released are two numbers for CIFAR with an adapter of its own; FacT-TT, the other
tasks, and the small real task that is the default here, are ours. 'full' is the form of the paper;
'lazy' and 'fast' take less time (docs/training.md).
"""

from ml_collections import ConfigDict

from configs import base

_PACE = {"consistency": "full", "consistency_weight": 1.0, "consistency_noise": 1.2}


def get_config(arg: str = "digits") -> ConfigDict:
    forms = {
        "digits": {"learning_rate": 1e-2, "scale": 1.0},
        "vtab": {"learning_rate": 1e-3, "scales": base.SCALES, "epochs": 300, "warmup_epochs": 10},
    }
    settings = base.form("pace", arg, forms)
    if arg == "vtab":
        return base.vtab("fact_tt", rank=16, **settings, **_PACE)
    config = base.get_config()
    config.tasks, config.methods, config.seeds = "digits", "fact_tt", (0,)
    config.variant, config.image_size, config.epochs = "vit_mini", 32, 20
    config.fact_tt = base.method("fact_tt", rank=16, **settings, **_PACE)
    return config
