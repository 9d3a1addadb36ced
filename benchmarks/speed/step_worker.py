"""One system of `step.py`, alone in a process: its last line is its result as JSON.

    python -m benchmarks.step_worker NAME [--batch 8] [--dtype float32] [--steps 3] [--count]

A step's time is the mean of `--steps` steps. Ours train as the sweep does, all of them in one call
of the epoch's program; full fine-tuning, an evaluation and the peers are called for each step.
With `--count` it is FLOPs alone: the program is compiled with the loop over the blocks written out,
and nothing is run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

CLASSES = 100
# Rates of 0.1 are those of FacT's training.
OURS: dict[str, dict[str, Any]] = {
    "ours: FacT-TT 16": {"method": "fact_tt", "rank": 16},
    "ours: FacT-TT 16, dropout": {"method": "fact_tt", "rank": 16, "rate": 0.1},
    "ours: FacT-TT 16, remat=attention": {"method": "fact_tt", "rank": 16, "remat": "attention"},
    "ours: FacT-TT 16, remat=block": {"method": "fact_tt", "rank": 16, "remat": "block"},
    "ours: FacT-TT 16, dropout, remat=block": {
        "method": "fact_tt",
        "rank": 16,
        "rate": 0.1,
        "remat": "block",
    },
    "ours: FacT-TT 16, attention=cudnn": {
        "method": "fact_tt",
        "rank": 16,
        "attention": "cudnn",
    },
    "ours: FacT-TK 32": {"method": "fact_tk", "rank": 32},
    "ours: FacT-TK 32, dropout": {"method": "fact_tk", "rank": 32, "rate": 0.1},
    "ours: linear": {"method": "linear"},
    "ours: full": {"method": "full"},
    "ours: evaluation": {"method": "evaluate"},
    "ours: evaluation, attention=cudnn": {"method": "evaluate", "attention": "cudnn"},
}
PEERS: dict[str, dict[str, Any]] = {
    "torch: FacT-TT 16": {"peer": "fact"},
    "torch: FacT-TT 16, dropout": {"peer": "fact", "rate": 0.1},
    "torch: peft LoRA 8": {"peer": "lora"},
    "torch: full": {"peer": "full"},
    "torch: evaluation": {"peer": "fact", "evaluate": True},
}
WARM_UP = 2  # calls before those measured: PyTorch's second step is still a tenth slower
FORWARD = "forward"  # through all tokens of all blocks: what FLOPs are compared with


def peak_memory(reset: bool = False) -> int:
    """The largest resident set since the last reset, in bytes (Linux).

    What compiling and initialising have freed is given back to the system before.
    """
    if reset:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(call, wait, calls: int, steps: int) -> list[float]:
    """[seconds a step], the mean of the steps that these calls do."""
    start = time.perf_counter()
    for _ in range(calls):
        wait(call())
    return [(time.perf_counter() - start) / steps]


def run_ours(s: dict[str, Any], a: argparse.Namespace) -> dict[str, Any]:
    """Times, memory and compile time; with `--count` the FLOPs of the program instead."""
    import jax
    import numpy as np
    import optax

    from fact_jax import Adaptation, ViT, features, get_variant
    from fact_jax.backbone.vit import init_base
    from fact_jax.sweep.versions import environment
    from fact_jax.training.evaluation import make_programs
    from fact_jax.training.mesh import make_mesh, put, replicated, stack
    from fact_jax.training.trial import (
        Hyper,
        init_head,
        init_trial,
        logits_of,
        make_epoch,
        train_set,
    )
    from fact_jax.tuning import METHODS, FacTTT

    batch, count = a.batch, a.count
    config = get_variant(a.variant).replace(
        dtype=a.dtype, remat=s.get("remat", "none"), attention=s.get("attention", "xla")
    )
    size = a.image_size or config.image_size
    config = config.replace(image_size=size, unroll=count)
    model = ViT(config)
    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    base = structs if count else init_base(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (batch, size, size, 3)).astype(np.uint8)
    labels = (np.arange(batch) % CLASSES).astype(np.int32)
    rate = s.get("rate")
    mesh = make_mesh(batch, jax.devices()[:1])
    on_device = jax.device_put(images)
    calls = a.steps

    def scaled(images):
        return images.astype(np.float32) / 255

    if s["method"] == "evaluate":
        _, program = make_programs(model, FacTTT(16), "imagenet")
        merged = (base, Adaptation())
        arguments = (merged, init_head(jax.random.key(0), config.width, CLASSES, CLASSES), CLASSES)
        arguments = (*arguments, on_device)
        lowered = program.lower(*arguments)
    elif s["method"] == "forward":

        def forward(base, images):
            return model.apply({"params": base}, scaled(images), mutable="intermediates")

        lowered, arguments = jax.jit(forward).lower(base, on_device), ()
    elif s["method"] == "full":
        head = init_head(jax.random.key(0), config.width, CLASSES, CLASSES)

        def loss(tree, images, labels):
            logits = logits_of(tree["head"], features(model, tree["base"], scaled(images)), CLASSES)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        optimizer = optax.adamw(1e-3)

        def step(tree, state, images, labels):
            value, gradient = jax.value_and_grad(loss)(tree, images, labels)
            updates, state = optimizer.update(gradient, state, tree)
            return optax.apply_updates(tree, updates), state, value

        tree = {"base": base, "head": head}
        state = jax.eval_shape(optimizer.init, tree) if count else optimizer.init(tree)
        arguments = (tree, state, on_device, labels)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
    else:
        settings = {"rank": s["rank"]} if "rank" in s else {}
        method = METHODS[s["method"]](**settings)
        program = make_epoch(model, method, "imagenet", batch, mesh)
        state = stack([init_trial(model, method, 0, CLASSES, CLASSES)], mesh)
        calls = 1
        many = [np.tile(x, (a.steps, *[1] * (x.ndim - 1))) for x in (images, labels)]
        data = stack([train_set(*many, CLASSES)], mesh)
        hyper = stack([jax.tree.map(np.float32, Hyper(1e-3, 1e-4, 1.0, rate, rate))], mesh)
        seed = stack([np.int32(0)], mesh)
        base = base if count else put(base, replicated(mesh))
        arguments = (base, state, data, hyper, seed, np.int32(0), np.int32(a.steps))
        lowered = program.lower(*arguments)

    start = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start
    if count:
        return {"flops": compiled.cost_analysis()["flops"]}
    memory = compiled.memory_analysis()

    loss = None

    def one():
        nonlocal arguments, loss
        out = compiled(*arguments)
        if s["method"] == "full":
            arguments = (*out[:2], *arguments[2:])
        elif s["method"] != "evaluate":
            arguments, loss = (base, out[0], *arguments[2:]), out[1]
        return out

    on_cpu = jax.default_backend() == "cpu"
    for _ in range(WARM_UP):
        jax.block_until_ready(one())
    if on_cpu:
        peak_memory(reset=True)
    seconds = measure(one, jax.block_until_ready, calls, a.steps)
    peak = peak_memory() if on_cpu else jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return {
        "seconds": seconds,
        "compile_s": compile_s,
        "peak_bytes": peak,
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
        "last_loss": None if loss is None else float(np.ravel(loss)[-1]),  # of equal steps: equal
        "environment": environment(),
    }


def run_torch(s: dict[str, Any], batch: int, dtype: str, steps: int) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    from benchmarks.speed.torch_peers import build

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = s.get("rate", 0.0)
    logits, trained, module = build(s["peer"], CLASSES, rate, rate)
    module.to(device).train(not s.get("evaluate"))
    optimizer = torch.optim.AdamW(trained, 1e-3, weight_decay=1e-4)
    x = torch.randn(batch, 3, 224, 224, device=device)
    y = torch.arange(batch, device=device) % CLASSES
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def step():
        if s.get("evaluate"):
            with torch.no_grad(), half:
                return logits(x).argmax(-1)
        with half:
            loss = F.cross_entropy(logits(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        wait(step())
    if device == "cpu":
        peak_memory(reset=True)
    seconds = measure(step, wait, steps, steps)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()
    return {"seconds": seconds, "peak_bytes": peak, "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=(*OURS, *PEERS, FORWARD))
    parser.add_argument("--variant", default="vit_b16")
    parser.add_argument("--image_size", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--count", action="store_true")
    a = parser.parse_args()
    settings = {**OURS, **PEERS, FORWARD: {"method": "forward"}}[a.name]
    if "peer" not in settings:
        result = run_ours(settings, a)
    elif a.variant != "vit_b16" or a.image_size not in (0, 224):
        raise SystemExit("the peers are ViT-B/16 at 224 pixels only")
    else:
        result = run_torch(settings, a.batch, a.dtype, a.steps)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
