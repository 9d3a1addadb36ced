"""FacT against a linear probe on three small real tasks, offline, in minutes on a laptop's CPU.

The offline suite (digits, Fashion-MNIST subset, location of a sprite; 1,000 training images each,
as in VTAB-1K, but not VTAB-1K) and the bundled `vit_mini`. Protocol and code are those of the real
experiment; the schedule is shorter. Rates per task come from val200; rank, scale and the number of
epochs were not searched (docs/bundled_model.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tasks = "digits,fashion,location"
    config.methods = "linear,fact_tt,fact_tk"
    config.seeds = (0,)
    config.variant = "vit_mini"
    config.image_size = 32
    config.epochs = 20
    config.linear = base.method(
        "linear", learning_rate=1e-2, per_task={"location": {"learning_rate": 3e-2}}
    )
    per_task = {"fashion": {"learning_rate": 3e-3}}
    fact = {"rank": 16, "scale": 1.0, "learning_rate": 1e-2, "per_task": per_task}
    config.fact_tt = base.method("fact_tt", **fact)
    config.fact_tk = base.method("fact_tk", **fact, mlp_cores="released")
    return config
