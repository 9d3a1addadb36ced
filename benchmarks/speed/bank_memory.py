"""Memory of a bank of many tasks, alone in a process: its last line is the result as JSON.

    python -m benchmarks.bank_memory [--tasks 10000] [--stored_as float32]

Tasks of FacT-TT rank 4 with heads of one class. The process's memory is what its resident set grew
by, from before the first task to after the last; `peak_bytes` is the most in between.
"""

import gc
import json
import time
from pathlib import Path

import jax

from benchmarks.common import option_parser
from benchmarks.network import network
from benchmarks.speed.bank import Bank, random_task
from benchmarks.speed.timing import peak_memory
from fact_jax import FacTTT, ViT
from fact_jax.backbone.vit import init_base
from fact_jax.serving.stack import DTYPES


def resident() -> int:
    """The resident set in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--stored_as", choices=DTYPES, default="float32")
    a = parser.parse_args()
    config = network(a)
    vit = ViT(config), init_base(config, jax.random.key(0))
    method, step, adding = FacTTT(4, 0.1), 256, 0.0
    compiled = Bank(*vit, capacity=a.tasks, dtype=a.stored_as)
    compiled.add_all({str(i): random_task(vit, method, i, 1) for i in range(73)})  # 64, 8 and 1
    del compiled
    bank = Bank(*vit, capacity=a.tasks, dtype=a.stored_as)
    gc.collect()
    peak_memory(reset=True)
    before = resident()
    for start in range(0, a.tasks, step):
        numbers = range(start, min(start + step, a.tasks))
        tasks = {str(i): random_task(vit, method, i, 1) for i in numbers}
        begun = time.perf_counter()
        bank.add_all(tasks)
        adding += time.perf_counter() - begun
    del tasks
    gc.collect()
    peak = peak_memory()
    peak_memory(reset=True)
    after, stored = resident(), bank.nbytes
    print(
        json.dumps(
            {
                "factor_bytes": stored.factors,
                "head_bytes": stored.heads,
                "resident_bytes": after - before,
                "peak_bytes": peak - before,
                "added_per_s": a.tasks / adding,
            }
        )
    )


if __name__ == "__main__":
    main()
