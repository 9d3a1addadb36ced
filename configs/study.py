"""The study: all methods on the offline suite, protocol `val`, each with the same small grid.

    python -m benchmarks.study

`benchmarks.study` runs the cells one by one. It chooses a learning rate on val200 with seed 0, and
keeps it for the other seeds of the same method and task. `python -m experiments.vtab` runs a form
as a plain sweep, which chooses for each seed.

`main` (the default): the methods of configs/compare.py and their rates, on `vit_mini` at 32 pixels.
Ten epochs of batches of 32 are as many steps as the quickstart's 20 epochs of 64, at half the cost.
NOAH's search is left out, because it costs as much as ten other cells: its middle width in every
block stands for it, as `noah_subnet`.
`smallest`: the smallest FacT, of 800 and 1,376 numbers.
`pace`: the same with PACE's loss, with the weight and noise of its released command for CIFAR; one
seed.
`pacegrid`: FacT-TT with PACE's loss, with weight and noise chosen on val200 with the first seed. It
gained nothing there, and costs five trainings in the place of one: the other leaders go without.
`bits4`, `bits1`: the same with factors and head of 4 or 1 bits.
`benchmarks.study` trains the leaders of `main` so, at the rate of `main`.
`rank4`, `adaptive`: FacT-TT of rank 4 from the start, and rounded to it while it trains.
`rounded8`, `rounded4`, `ensemble`, `together`: what it makes of trained tasks without training.
`dinov2`: six methods on six tasks, from DINOv2-S at 98 pixels, seven epochs, one seed: two and a
half hours of two cores. There is no grid: each rate is half of the one that val200 chose most often
in benchmarks/results/compare_dinov2.json (digits and location at 42 pixels), where batches were
twice as large.
"""

from typing import Any

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
# Settings of a whole form.
FORMS: dict[str, dict[str, Any]] = {
    "main": {},
    "smallest": {},
    "pace": {"consistency": "full", "consistency_noise": 1.2, "seeds": (0,)},
    "pacegrid": {"consistency": "full"},
    "bits4": {"factor_bits": 4, "head_bits": 4},
    "bits1": {"factor_bits": 1, "head_bits": 1},
    "rank4": {},
    "adaptive": {},
    "rounded8": {},
    "rounded4": {},
    "ensemble": {"seeds": (0,)},
    "together": {},
}
PACE = {"consistency_weights": (0.1, 1.0), "consistency_noises": (0.3, 1.2)}  # of `pacegrid`
AS_MAIN = ("pace", "pacegrid", "bits4", "bits1")  # at the rate that `main` has chosen
RANK4: dict[str, dict[str, Any]] = {  # from the start, and as configs/rank_adaptive.py has it
    "rank4": {},
    "adaptive": {"start_ranks": (16, 8), "round_epochs": (4, 7)},
}
ONLY_TT = ("pacegrid", "rounded8", "rounded4", "together")  # the last is named after it
DINOV2 = {
    "fact_tt": {"rank": 16, "learning_rate": 5e-3},
    "linear": {"learning_rate": 1.5e-2},
    "lora": {**compare.SMALL["lora"], "learning_rate": 1.7e-3},
    "full": {"learning_rate": 5e-5},
    "fact_tk": {**compare.SMALL["fact_tk"], "learning_rate": 5e-3},
    "vpt_deep": {**compare.SMALL["vpt_deep"], "learning_rate": 1.7e-3},
}
DINOV2_RUN = {"image_size": 98, "epochs": 7, "seeds": (0,)}
DINOV2_TASKS = "fashion,emoji,textile,script,count,orientation"  # two of each group


def _grid(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of these methods, each with compare's three rates."""
    grids = {}
    for name, settings in methods.items():
        share = 0.1 if name == "full" else 1.0
        rates = tuple(share * rate for rate in compare.RATES)
        grids[name] = {**settings, "learning_rates": rates}
    return grids


def _methods(form: str) -> dict[str, dict[str, Any]]:
    """The methods of a form with their settings."""
    if form == "dinov2":
        return DINOV2
    if form == "smallest":
        return _grid(SMALLEST)
    if form in RANK4:
        return _grid({"fact_tt": {"rank": 4, **RANK4[form]}})
    methods = compare.SMALL | compare.FAMILY
    del methods["noah"]
    del methods["metatt_tasks"]  # alone, a task has what MetaTT has
    methods |= {"noah_subnet": dict.fromkeys(("prompts", "lora", "adapters"), MIDDLE)}
    if form == "pacegrid":
        methods["fact_tt"] = {**methods["fact_tt"], **PACE}
    return _grid({"fact_tt": methods["fact_tt"]} if form in ONLY_TT else methods)


def get_config(arg: str = "main") -> ConfigDict:
    config = base.get_config()
    config.tasks, config.seeds, config.batch_size = TASKS, SEEDS, BATCH_SIZE
    config.variant, config.image_size, config.epochs = "vit_mini", 32, EPOCHS
    config.update(base.form("study", arg, {**FORMS, "dinov2": DINOV2_RUN}))
    if arg == "dinov2":
        config.variant, config.tasks = "dinov2_s14", DINOV2_TASKS
    methods = _methods(arg)
    config.methods = ",".join(methods)
    for name, settings in methods.items():
        config[name] = base.method(name, **settings)
    return config
