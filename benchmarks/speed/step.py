"""A training step and an evaluation of ViT-B/16 at 224 pixels: ours and the peers', in one run.

    python -m benchmarks.step [--batch 8] [--rounds 3] [--dtype float32] [--only NAMES] [--out FILE]

--variant and --image_size make another network of ours; the peers are ViT-B/16 at 224 pixels only.
Every system runs in a process of its own (`step_worker.py`), in `--rounds` rounds one
after the other, so that a noisy minute hits them all; a system's time is the mean step of its best
round. A step is forward, backward and AdamW; ours are timed within a call of several, as training
runs them, the peers' and full fine-tuning's one by one. Memory is the process's largest resident
set during steps (on a GPU the allocator's peak), the frozen weights included. Ratios are to
PyTorch's FacT with the same dropout, or to its evaluation. What fails is left out with a line, and
everything measured is stored at once.

FLOPs are XLA's own count for the CPU (for a GPU it leaves out the products that go to cuBLAS), in
float32, with the loop over the blocks written out; where there is a GPU they are counted while it
measures. `flops_over_forward` compares them with a forward pass through all tokens; what
rematerialisation computes again is in it. `useful_flops` are those of the same system without
rematerialisation and with XLA's attention: what the result needs.
"""

from __future__ import annotations

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

from benchmarks.speed.step_worker import FORWARD, OURS, PEERS

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
    own = {k: v for k, v in OURS[name].items() if k not in ("remat", "attention")}
    return next(other for other, settings in OURS.items() if settings == own)


def call(name: str, a: argparse.Namespace, *more: str, **environment: str) -> dict[str, Any]:
    """The worker's result; {"error": last line} if it failed."""
    command = [sys.executable, "-m", "benchmarks.step_worker", name, "--batch", str(a.batch)]
    command += ["--dtype", a.dtype, "--steps", str(a.steps), "--variant", a.variant]
    command += ["--image_size", str(a.image_size), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode:
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def count(names: list[str], a: argparse.Namespace, console: Console) -> Systems:
    """FLOPs of those of ours, each program counted once and several at a time."""
    ours = [name for name in names if name in OURS]
    # Of cudnn's kernel XLA knows no FLOPs.
    whole = {name for name in ours if "attention" not in OURS[name]}
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
    for name, found in counted.items():
        if plain(name) in flops:
            found["useful_flops"] = flops[plain(name)]
        if name in whole & flops.keys():
            found["flops"] = flops[name]
            if FORWARD in flops:
                found["flops_over_forward"] = flops[name] / flops[FORWARD]
    return counted


def compare(systems: Systems, batch: int) -> None:
    """Adds images/s, and the ratios to PyTorch's where that is measured."""
    for name, found in systems.items():
        best = min(found["seconds"])
        kind = "evaluation" if "evaluation" in name else "FacT-TT 16"
        reference = systems.get(f"torch: {kind}" + (", dropout" if "dropout" in name else ""))
        found["images_per_s"] = batch / best
        if reference:
            found["time_ratio"] = best / min(reference["seconds"])
            found["memory_ratio"] = found["peak_bytes"] / reference["peak_bytes"]


def store(systems: Systems, a: argparse.Namespace, environment: dict[str, Any] | None) -> None:
    if a.out:
        names = ("variant", "image_size", "batch", "dtype", "steps", "rounds")
        settings = {name: getattr(a, name) for name in names}
        content = {"settings": settings, "systems": systems, "environment": environment}
        a.out.write_text(json.dumps(content, indent=1) + "\n")


def table_of(systems: Systems) -> Table:
    columns = ("images/s", "time / torch", "peak GB", "memory / torch")
    table = Table("system", *columns, "compile s", "FLOPs / forward")

    def text(found: dict[str, Any], key: str, digits: int) -> str:
        return f"{found[key]:.{digits}f}" if key in found else ""

    for name, found in systems.items():
        table.add_row(
            name,
            text(found, "images_per_s", 2),
            text(found, "time_ratio", 2),
            f"{found['peak_bytes'] / 1e9:.2f}",
            text(found, "memory_ratio", 2),
            text(found, "compile_s", 1),
            text(found, "flops_over_forward", 3),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_b16")
    parser.add_argument("--image_size", type=int, default=0, help="0: the variant's")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="systems, names with ';' between them")
    parser.add_argument("--no_flops", action="store_true")
    parser.add_argument("--out", type=Path)
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
        return {name: {**counted.get(name, {}), **found} for name, found in systems.items()}

    environment, failed = None, set()
    for i in range(a.rounds):
        for name in names:
            if name in failed:
                continue
            result = call(name, a)
            if "error" in result:
                console.print(f"{name}: left out: {result['error']}", markup=False)
                failed.add(name)
                continue
            # Not asked for here: that would take memory of the GPU that the workers need.
            environment = result.pop("environment", environment)
            found = systems.setdefault(name, {})
            found["seconds"] = [*found.get("seconds", []), *result.pop("seconds")]
            found.update(result)
            best = min(found["seconds"])
            console.print(f"round {i + 1}: {name}: {best:.2f} s a step", highlight=False)
            compare(systems, a.batch)
            store(with_flops(), a, environment)
    counting.result()
    if not systems:
        raise SystemExit("Nothing was measured.")
    if environment is None:  # PyTorch alone
        from fact_jax.sweep import versions

        environment = versions.environment()
    whole = with_flops()
    store(whole, a, environment)
    console.print(table_of({name: whole[name] for name in (*OURS, *PEERS) if name in whole}))


if __name__ == "__main__":
    main()
