"""A training step and an evaluation of ViT-B/16 at 224 pixels: ours and the peers', in one run.

    python -m benchmarks.step [--batch 8] [--rounds 3] [--dtype float32] [--only NAMES] [--out FILE]

--variant and --image_size make another network of ours; the peers are ViT-B/16 at 224 pixels only.
Every system runs in a process of its own (`step_worker.py`), in `--rounds` rounds one
after the other, so that a noisy minute hits them all; a system's time is the mean step of its best
round. A step is forward, backward and AdamW; ours are timed within a call of several, as training
runs them, the peers' and full fine-tuning's one by one. Memory is the process's largest resident
set during steps (on a GPU the allocator's peak), the frozen weights included. Ratios are to
PyTorch's FacT with the same dropout, or to its evaluation. A system that fails is left out with a
message, and each measurement is stored at once.

FLOPs are XLA's own count for the CPU (for a GPU it leaves out the products that go to cuBLAS), in
float32, with the loop over the blocks written out; where there is a GPU they are counted while it
measures. `flops_over_forward` compares them with a forward pass through all tokens; what
rematerialisation computes again is in it. `useful_flops` are those of the same system without
rematerialisation and with XLA's attention: what the result needs.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, store
from benchmarks.speed.systems import FORWARD, OURS, PEERS
from fact_jax.sweep.versions import environment

NO_SETTINGS = ("only", "no_flops")
Systems = dict[str, dict[str, Any]]
# Measured before the others, should the time not suffice for all.
FIRST = (
    "ours: FacT-TT 16",
    "torch: FacT-TT 16",
    "ours: FacT-TT 16, attention=cudnn",
    "ours: FacT-TT 16, dropout",
    "torch: FacT-TT 16, dropout",
    "ours: evaluation",
    "torch: evaluation",
)


def nvidia() -> bool:
    """Whether the workers will use a GPU; JAX is not asked, for it would take memory there."""
    return Path("/dev/nvidia0").exists() and os.environ.get("JAX_PLATFORMS") != "cpu"


def plain(name: str) -> str:
    """The system of ours that computes the same with nothing twice and no fused kernel."""
    return ", ".join(word for word in name.split(", ") if "=" not in word)


def call(name: str, a: argparse.Namespace, *more: str, **variables: str) -> dict[str, Any]:
    """The worker's result; {"error": last line} if it failed."""
    command = [sys.executable, "-m", "benchmarks.step_worker", name, "--batch", str(a.batch)]
    command += ["--dtype", a.dtype, "--steps", str(a.steps), "--variant", a.variant]
    command += ["--image_size", str(a.image_size), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode:
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def count(names: list[str], a: argparse.Namespace, console: Console) -> Systems:
    """FLOPs of those of ours, each program counted once and several at a time."""
    ours = [name for name in names if name in OURS]
    # Of cudnn's kernel XLA knows no FLOPs.
    whole = {name for name in ours if "attention=cudnn" not in name}
    programs = [FORWARD, *dict.fromkeys([*map(plain, ours), *whole])] if ours else []

    def one(name: str) -> dict[str, Any]:
        return call(name, a, "--dtype", "float32", "--count", JAX_PLATFORMS="cpu")

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        results = dict(zip(programs, pool.map(one, programs), strict=True))
    for name, result in results.items():
        if "error" in result:
            console.print(f"{name}: FLOPs left out: {result['error']}", markup=False)
    flops = {name: result["flops"] for name, result in results.items() if "flops" in result}
    counted: Systems = {name: {} for name in ours}
    for name, measured in counted.items():
        if plain(name) in flops:
            measured["useful_flops"] = flops[plain(name)]
        if name in whole & flops.keys():
            measured["flops"] = flops[name]
            if FORWARD in flops:
                measured["flops_over_forward"] = flops[name] / flops[FORWARD]
    return counted


def compare(systems: Systems, batch: int) -> None:
    """Adds images/s, and the ratios to PyTorch's where that is measured."""
    for name, measured in systems.items():
        best = min(measured["seconds"])
        kind = "evaluation" if "evaluation" in name else "FacT-TT 16"
        reference = systems.get(f"torch: {kind}" + (", dropout" if "dropout" in name else ""))
        measured["images_per_s"] = batch / best
        if reference:
            measured["time_ratio"] = best / min(reference["seconds"])
            measured["memory_ratio"] = measured["peak_bytes"] / reference["peak_bytes"]


def table_of(systems: Systems) -> Table:
    columns = ("images/s", "time / torch", "peak GB", "memory / torch")
    table = Table("system", *columns, "compile s", "FLOPs / forward")

    def text(measured: dict[str, Any], key: str, digits: int) -> str:
        return f"{measured[key]:.{digits}f}" if key in measured else ""

    for name, measured in systems.items():
        table.add_row(
            name,
            text(measured, "images_per_s", 2),
            text(measured, "time_ratio", 2),
            f"{measured['peak_bytes'] / 1e9:.2f}",
            text(measured, "memory_ratio", 2),
            text(measured, "compile_s", 1),
            text(measured, "flops_over_forward", 3),
        )
    return table


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch", "dtype", "rounds")
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--only", default="", help="systems, names with ';' between them")
    parser.add_argument("--no_flops", action="store_true")
    a = parser.parse_args()
    console = Console(width=140)
    names = [n.strip() for n in a.only.split(";") if n.strip()] or [
        name
        for name in dict.fromkeys((*FIRST, *OURS, *PEERS))
        if "cudnn" not in name or a.dtype == "bfloat16"
    ]
    if unknown := set(names) - {*OURS, *PEERS}:
        parser.error(f"--only has {', '.join(unknown)}; known are {'; '.join((*OURS, *PEERS))}")
    systems: Systems = {}
    counting = ThreadPoolExecutor(1).submit(lambda: {} if a.no_flops else count(names, a, console))
    if not nvidia():
        counting.result()  # on a CPU it would disturb the others

    def with_flops() -> Systems:
        counted = counting.result() if counting.done() else {}
        return {name: {**counted.get(name, {}), **measured} for name, measured in systems.items()}

    about, failed = None, set()
    for i in range(a.rounds):
        for name in names:
            if name in failed:
                continue
            result = call(name, a)
            if "error" in result:
                console.print(f"{name}: left out: {result['error']}", markup=False)
                failed.add(name)
                continue
            # The worker's: to ask here would take memory of the GPU that the workers need.
            about = result.pop("environment", about)
            measured = systems.setdefault(name, {})
            measured["seconds"] = [*measured.get("seconds", []), *result.pop("seconds")]
            measured.update(result)
            best = min(measured["seconds"])
            console.print(f"round {i + 1}: {name}: {best:.2f} s a step", highlight=False)
            compare(systems, a.batch)
            store(a, {"systems": with_flops(), "environment": about}, *NO_SETTINGS)
    counting.result()
    if not systems:
        raise SystemExit("Nothing was measured.")
    whole = with_flops()
    about = about or environment()  # PyTorch's workers say none
    store(a, {"systems": whole, "environment": about}, *NO_SETTINGS)
    console.print(table_of({name: whole[name] for name in (*OURS, *PEERS) if name in whole}))


if __name__ == "__main__":
    main()
