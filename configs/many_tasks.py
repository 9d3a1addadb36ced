"""A hundred small tasks on the bundled ViT: two classes each, 20 training pictures a class.

    python -m benchmarks.pairs --out runs/pairs
    python -m experiments.vtab --config many_tasks --config.data_dir=runs/pairs --workdir runs/many
    python -m experiments.vtab --config many_tasks:finish --config.data_dir=runs/pairs \\
        --config.start_from=runs/many/factors --workdir runs/finished

The first command writes the pictures: every pair of digits, of garments, and ten pairs of
neighbouring places of a sprite. The last one goes on from the trained factors, with 4 bits a number
and 1 of the head. many_tasks:12 and many_tasks:12,finish take the first twelve. The settings are
the quickstart's, but for a lower rank and a smaller batch. No published numbers.
"""

import itertools

from ml_collections import ConfigDict

from configs import quickstart

# The bundled data set and the two classes of each task, from the three sets in turn.
PAIRS = tuple(
    pair
    for several in itertools.zip_longest(
        [("digits", *two) for two in itertools.combinations(range(10), 2)],
        [("fashion", *two) for two in itertools.combinations(range(10), 2)],
        [("location", place, place + 1) for place in range(10)],
    )
    for pair in several
    if pair
)


def task_name(pair: tuple[str, int, int]) -> str:
    return "folder_" + "_".join(map(str, pair))


def get_config(arg: str = "") -> ConfigDict:
    words = [word for word in arg.split(",") if word]
    numbers = [word for word in words if word != "finish"] or [str(len(PAIRS))]
    if len(numbers) != 1 or not (numbers[0].isdecimal() and 1 <= int(numbers[0]) <= len(PAIRS)):
        raise ValueError(
            f"many_tasks.py:{arg}: expected a number from 1 to {len(PAIRS)}, finish, or both."
        )
    chosen = PAIRS[: int(numbers[0])]
    names = {data: [task_name(p) for p in chosen if p[0] == data] for data, *_ in PAIRS}
    config = quickstart.get_config()
    config.tasks = ",".join(map(task_name, chosen))
    config.methods, config.seeds = "linear,fact_tt", (0, 1)
    config.batch_size = 8
    config.trials_per_device = 20  # the trainings are small
    config.fact_tt.rank = 4
    for method, data in (("linear", "location"), ("fact_tt", "fashion")):
        rate = config[method].per_task[data].learning_rate
        config[method].per_task = {task: {"learning_rate": rate} for task in names[data]}
    return _finish(config) if "finish" in words else config


def _finish(config: ConfigDict) -> ConfigDict:
    """Five epochs that compute with few bits, at a quarter of the rates, as `round` finishes."""
    config.methods, config.factor_bits, config.head_bits = "fact_tt", 4, 1
    config.epochs, config.warmup_epochs = 5, 0
    for settings in (config.fact_tt, *config.fact_tt.per_task.values()):
        settings.learning_rate *= 0.25  # fact_jax.cli.finish.RATE_SHARE
    return config
