"""The measured ceiling of a device, a large bfloat16 product, and how near a training step comes.

    python -m benchmarks.ceiling [--size 8192] [--step results/step.json] [--out FILE]

`--step` is what `benchmarks.step` wrote on the same device. A system's rate is its `useful_flops`
(XLA's count; those of a frozen base: no gradient of a frozen kernel is computed or counted, and
what rematerialisation computes again is not counted) over its time.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from fact_jax.sweep.versions import environment


def matrix_rate(size: int, rounds: int, chain: int = 8) -> float:
    """FLOP/s of a chain of square bfloat16 products, best of `rounds`."""
    # Scaled once, so that the chain neither grows nor vanishes and is nothing but products.
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16) * size**-0.5

    @jax.jit
    def products(a):
        return jax.lax.fori_loop(0, chain, lambda _, x: x @ a, a)

    jax.block_until_ready(products(a))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(products(a))
        best = min(best, time.perf_counter() - start)
    return chain * 2 * size**3 / best


def main() -> None:
    parser = option_parser(__doc__, "rounds", rounds=10)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--step", type=Path)
    a = parser.parse_args()
    ceiling = matrix_rate(a.size, a.rounds)
    table = Table("what", "TFLOP/s", "of the ceiling")
    table.add_row(f"bfloat16 product of {a.size} x {a.size}", f"{ceiling / 1e12:.2f}", "1")
    shares = {}
    if a.step and a.step.exists():
        for name, system in json.loads(a.step.read_text())["systems"].items():
            if "useful_flops" in system:
                rate = system["useful_flops"] / min(system["seconds"])
                shares[name] = rate / ceiling
                table.add_row(name, f"{rate / 1e12:.2f}", f"{shares[name]:.2f}")
    Console().print(table)
    if a.out:
        content = {"size": a.size, "flops_per_s": ceiling, "shares": shares}
        write_json(a.out, {**content, "environment": environment()})
    if a.step and not shares:
        raise SystemExit(f"No share of the ceiling: {a.step} has no system with useful_flops.")


if __name__ == "__main__":
    main()
