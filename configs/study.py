"""The study: all methods on the offline suite, protocol `val`, each with the same small grid.

    python -m benchmarks.study

`benchmarks.study` runs the cells one by one. It chooses a learning rate on val200 with seed 0, and
keeps it for the other seeds of the same method and task. `python -m experiments.vtab` runs a form
as a plain sweep, which chooses for each seed.

`main` (the default): the methods of configs/compare.py and their rates, on `vit_mini` at 32 pixels.
Ten epochs of batches of 32 are as many steps as the quickstart's 20 epochs of 64, at half the cost.
NOAH's search is left out, because it costs as much as ten other cells: its middle width in every
block stands for it, as `noah_subnet`.
`smallest`: the smallest FacT, of 800 and 1,864 numbers.
"""

from ml_collections import ConfigDict

from configs import base, compare

TASKS = "offline"
SEEDS = (0, 1, 2)
EPOCHS, BATCH_SIZE = 10, 32
MIDDLE = (4,) * 6  # of the three widths that NOAH searches in, in each block of vit_mini
SMALLEST = {"fact_tt": {"rank": 2}, "fact_tk": {"rank": 4, "mlp_cores": "released"}}
# What the claims are about comes first: if the study is cut, it is complete.
FIRST = (
    *("fact_tt", "linear", "full", "lora", "fact_tk", "fact_tt_smallest", "bitfit", "vpt_deep"),
    *("fact_tk_smallest", "adaptformer", "vpt_shallow"),
)


def _grid(config: ConfigDict, methods: dict[str, dict[str, object]]) -> ConfigDict:
    """The config with these methods, each with compare's three rates."""
    config.methods = ",".join(methods)
    for name, settings in methods.items():
        share = 0.1 if name == "full" else 1.0
        rates = tuple(share * rate for rate in compare.RATES)
        config[name] = base.method(name, **settings, learning_rates=rates)
    return config


def _methods() -> dict[str, dict[str, object]]:
    """All methods of the comparison, NOAH without its search."""
    methods = compare.SMALL | compare.FAMILY
    del methods["noah"]
    return methods | {"noah_subnet": dict.fromkeys(("prompts", "lora", "adapters"), MIDDLE)}


def get_config(arg: str = "main") -> ConfigDict:
    config = base.get_config()
    config.tasks, config.seeds = TASKS, SEEDS
    config.variant, config.image_size = "vit_mini", 32
    config.epochs, config.batch_size = EPOCHS, BATCH_SIZE
    return _grid(config, base.form("study", arg, {"main": _methods(), "smallest": SMALLEST}))
