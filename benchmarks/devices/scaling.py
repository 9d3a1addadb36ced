"""Cost of a FacT-TT training step as one thing grows: rank, images, depth, trials, devices.

    python -m benchmarks.scaling [--variant vit_b16] [--batch 8] [--image_size 0] [--dtype float32]
        [--rank 16] [--rate RATE] [--remat none] [--attention xla] [--rounds 3] [--only NAMES]
        [--out FILE.json]

One variable at a time around a base point: one trial of --batch images and --rank on one device,
without dropout unless there is a --rate. A sweep over a variable is a process of its own: its
programs are compiled first (on an accelerator all at once), then run in turn for --rounds rounds,
so that a noisy minute hits them all. A time is the best of the rounds, and ratios are to the
sweep's first value. Temporary memory is XLA's plan for one device; arguments (frozen weights,
images, factors) are not in it.

On a CPU the devices are host-platform devices of XLA: they share the machine's cores, so that the
best that can be had is a time proportional to the work. On an accelerator as many devices are
taken as there are. A value that does not fit the memory is left out with a line.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, store
from benchmarks.network import network, training
from fact_jax import FacTTT, ViT
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import make_mesh

COUNTS = (1, 2, 4, 8)
SWEEPS = {  # the title of each
    "rank": "rank",
    "images": "images a step",
    "depth": "blocks",
    "trials": "trials on one device",
    "devices": "devices, a trial on each",
    "split": "devices, one batch cut over them",
}


def values_of(sweep: str, batch: int) -> list[int]:
    """The values of a variable; images are doubled from 1 up to the batch."""
    powers = [2**i for i in range(batch.bit_length()) if 2**i < batch]
    return list(
        {"rank": (1, 4, 16, 64), "images": (*powers, batch), "depth": (3, 6, 12, 24)}.get(
            sweep, COUNTS
        )
    )


def prepare(a: argparse.Namespace, sweep: str, value: int):
    """Compiles a function that trains one step: it and the row so far; None at the sweep's end."""
    batch = value if sweep == "images" else a.batch
    trials = value if sweep in ("trials", "devices") else 1
    count = value if sweep in ("devices", "split") else 1
    if count > len(jax.devices()) or (sweep == "split" and batch % count):
        return None
    config = network(a)
    model = ViT(config.replace(depth=value) if sweep == "depth" else config)
    method = FacTTT(value if sweep == "rank" else a.rank)
    mesh = make_mesh(batch, jax.devices()[:count], trials)
    program, arguments = training(model, method, batch, mesh, trials=trials, rate=a.rate)
    lowered = program.lower(*arguments)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start

    def step() -> None:
        arguments[1], losses = jax.block_until_ready(compiled(*arguments))
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"{sweep} {value}: losses {losses}")

    temporary = compiled.memory_analysis().temp_size_in_bytes
    row = {"value": value, "images": trials * batch, "compile_s": seconds, "seconds": []}
    return step, {**row, "temporary_bytes": temporary}


def worker(a: argparse.Namespace) -> dict[str, Any]:
    """The rows of one sweep."""

    def within_memory(call) -> Any:
        """The value of the call, or the message of memory that did not suffice."""
        try:
            return call()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return str(error).splitlines()[0]

    steps, rows, left_out = [], [], []
    values = values_of(a.sweep, a.batch)
    # On a CPU compiling two at a time would take the cores from each other.
    with ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else len(values)) as pool:
        compiled = pool.map(lambda v: within_memory(lambda: prepare(a, a.sweep, v)), values)
        for value, prepared in zip(values, list(compiled), strict=True):
            if isinstance(prepared, tuple) and (message := within_memory(prepared[0])):
                prepared = message
            if prepared is None:
                prepared = f"{len(jax.devices())} devices, batch {a.batch}"
            if isinstance(prepared, str):
                left_out.append(f"{value}: {prepared}")
                continue
            steps.append(prepared[0])
            rows.append(prepared[1])
    for _ in range(a.rounds):
        for step, row in zip(steps, rows, strict=True):
            start = time.perf_counter()
            step()
            row["seconds"].append(time.perf_counter() - start)
    for row in rows:
        row["best_seconds"] = min(row["seconds"])
        row["images_per_s"] = row["images"] / row["best_seconds"]
        row["time_ratio"] = row["best_seconds"] / rows[0]["best_seconds"]
        row["memory_ratio"] = row["temporary_bytes"] / rows[0]["temporary_bytes"]
    shared = jax.devices()[0].platform == "cpu" and a.sweep in ("devices", "split")
    return {
        "rows": rows,
        "left_out": left_out,
        "shared_cores": os.cpu_count() if shared else None,
        "environment": environment(),
    }


def call(sweep: str, arguments: list[str]) -> dict[str, Any]:
    """The worker's result; eight host-platform devices where the devices are the variable."""
    variables = dict(os.environ)
    if sweep in ("devices", "split"):  # the flag concerns the CPU only
        flag = f"--xla_force_host_platform_device_count={max(COUNTS)}"
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} {flag}".strip()
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--sweep", sweep]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"The sweep over {SWEEPS[sweep]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = option_parser(
        __doc__, "variant", "image_size", "batch", "dtype", "remat", "attention", "rounds"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, help="of dropout and drop path; none by default")
    parser.add_argument("--only", default="", help=f"of {';'.join(SWEEPS)}, with ';' between them")
    parser.add_argument("--sweep", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.sweep:
        print(json.dumps(worker(a)))
        return
    names = [n.strip() for n in a.only.split(";") if n.strip()] or list(SWEEPS)
    if unknown := set(names) - set(SWEEPS):
        parser.error(f"--only has {', '.join(unknown)}; known are {', '.join(SWEEPS)}")
    console, sweeps = Console(width=110), {}
    for name in names:
        measured = call(name, sys.argv[1:])
        # The worker's: to ask here would take memory of the GPU that the workers need.
        about = measured.pop("environment")
        sweeps[name] = {"title": SWEEPS[name], **measured}
        for line in measured["left_out"]:
            console.print(f"{SWEEPS[name]}: left out {line}", markup=False, highlight=False)
        # At once, should the time not suffice for the rest.
        store(a, {"sweeps": sweeps, "environment": about}, "sweep", "only")
    console.print(table_of(sweeps))


def table_of(sweeps: dict[str, dict[str, Any]]) -> Table:
    columns = ("s a step", "time ratio", "images/s", "temporary MB", "memory ratio", "compile s")
    table = Table("variable", "value", *columns)
    for sweep in sweeps.values():
        title = sweep["title"]
        if sweep["shared_cores"]:
            title += f"\n(they share {sweep['shared_cores']} cores)"
        for i, row in enumerate(sweep["rows"]):
            values = [str(row["value"]), f"{row['best_seconds']:.4f}", f"{row['time_ratio']:.2f}"]
            values += [f"{row['images_per_s']:.1f}", f"{row['temporary_bytes'] / 1e6:.1f}"]
            values += [f"{row['memory_ratio']:.2f}", f"{row['compile_s']:.1f}"]
            table.add_row("" if i else title, *values)
        table.add_section()
    return table


if __name__ == "__main__":
    main()
