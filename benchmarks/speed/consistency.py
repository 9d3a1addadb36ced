"""What consistency (PACE) adds to a training step, in its three forms.

    python -m benchmarks.consistency [--batch 8] [--rounds 5] [--out FILE]

All programs lie in one process and take turns, so that a noisy minute hits them all. A ratio
compares the best round of a form with the best round of the plain step at the same rates of dropout
and stochastic depth. Where the CPU computes, it is a ratio of `cpu_seconds`, the time of all
threads, which other programs on the machine change less than the time of day. A call makes
`--steps` steps, because 'lazy' does other things in every second one. The plain step without
dropout merges increments into the kernels, which noise forbids.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, store
from benchmarks.network import network, training
from fact_jax import FacTTT, ViT
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import make_mesh, put, replicated
from fact_jax.training.recipe import CONSISTENCIES, Recipe

RATES = {"dropout": 0.1, "no dropout": None}
FORMS = ("", *CONSISTENCIES)


def programs(a: argparse.Namespace, console: Console) -> dict[tuple[str, str], list[Any]]:
    """[compiled program, its arguments, seconds to compile] by rates and form."""
    model = ViT(network(a))
    mesh = make_mesh(a.batch, jax.devices()[:1])
    base = put(init_base(model.config, jax.random.key(0)), replicated(mesh))
    made: dict[tuple[str, str], list[Any]] = {}
    for name in a.rates.split(","):
        rate = RATES[name]
        for form in FORMS:
            program, arguments = training(
                model,
                FacTTT(a.rank),
                a.batch,
                mesh,
                steps=a.steps,
                rate=rate,
                base=base,
                recipe=Recipe(consistency=form),
            )
            start = time.perf_counter()
            compiled = program.lower(*arguments).compile()
            console.print(f"{name}, {form or 'plain'}: compiled")
            made[name, form] = [compiled, arguments, time.perf_counter() - start]
    return made


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch", "dtype", "rounds", rounds=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a call; an even number")
    parser.add_argument("--rates", default=",".join(RATES), help="some of these")
    parser.add_argument("--rank", type=int, default=16)
    a = parser.parse_args()
    console = Console()
    if a.steps % 2:
        parser.error(f"--steps is {a.steps}; expected an even number, for every second step.")
    made = programs(a, console)
    rows: dict[tuple[str, str], dict[str, Any]] = {
        key: {"seconds": [], "cpu_seconds": [], "compile_s": compile_s}
        for key, (_, _, compile_s) in made.items()
    }
    for i in range(a.rounds + 1):  # the first is for warming up
        for key, (compiled, arguments, _) in made.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            states, losses = jax.block_until_ready(compiled(*arguments))
            seconds = (time.perf_counter() - start) / a.steps
            cpu_seconds = (time.process_time() - cpu_start) / a.steps
            arguments[1] = states
            assert np.isfinite(losses).all()
            if i:
                rows[key]["seconds"].append(seconds)
                rows[key]["cpu_seconds"].append(cpu_seconds)
    counted = "cpu_seconds" if jax.default_backend() == "cpu" else "seconds"
    forms: dict[str, dict[str, Any]] = {name: {} for name in a.rates.split(",")}
    table = Table("rates", "form", "seconds a step", "time / plain", "compile s")
    for (name, form), row in rows.items():
        plain = rows[name, ""]
        row["time_ratio"] = min(row[counted]) / min(plain[counted])
        forms[name][form or "plain"] = row
        best, ratio = (f"{x:.3f}" for x in (min(row["seconds"]), row["time_ratio"]))
        table.add_row(name, form or "plain", best, ratio, f"{row['compile_s']:.1f}")
    console.print(table)
    store(a, {"forms": forms, "environment": environment()})


if __name__ == "__main__":
    main()
