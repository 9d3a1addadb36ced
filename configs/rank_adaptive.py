"""Rank-adaptive training of FacT-TT: begin at a large rank, and round while training.

    fact-jax vtab --config rank_adaptive --workdir DIR
    fact-jax vtab --config rank_adaptive:fixed --workdir DIR
    fact-jax vtab --config rank_adaptive:vtab --workdir DIR

The idea is that of MetaTT (Lopez-Piqueres et al., arXiv 2506.09105), which rounds its tensor-train
between epochs in the manner of DMRG. Ranks and epochs are ours and were not searched. 'fixed' is
the training at the last rank from the start, to compare with. No published numbers are known.
"""

from ml_collections import ConfigDict

from configs import base

_ROUNDED = {"start_ranks": (16, 8), "round_epochs": (8, 14)}


def get_config(arg: str = "digits") -> ConfigDict:
    forms = {"digits": _ROUNDED, "fixed": {}, "vtab": {}}
    settings = base.form("rank_adaptive", arg, forms)
    if arg == "vtab":
        ranks = {"start_ranks": (16, 8), "round_epochs": (40, 70)}
        return base.vtab("fact_tt", rank=4, scales=base.SCALES, **ranks)
    config = base.get_config()
    config.tasks, config.methods, config.seeds = "digits", "fact_tt", (0,)
    config.variant, config.image_size, config.epochs = "vit_mini", 32, 20
    config.fact_tt = base.method("fact_tt", rank=4, learning_rate=1e-2, scale=1.0, **settings)
    return config
