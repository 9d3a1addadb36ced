"""Whether the device computes what the CPU does: logits, losses and gradients, side by side.

    python -m benchmarks.check_device [--variant vit_b16] [--depth 3] [--batch 8] [--out FILE]

FacT-TT of rank 16 and FacT-TK of rank 32 with random factors, on a ViT of true width with few
blocks. The reference is the CPU backend of the same process, in float32. On the device: float32
with products of the highest precision, and bfloat16; on a GPU also bfloat16 with cuDNN's attention.
Compared are the logits, and the loss and the factors' gradients of one step of the sweep's own
training program (read off AdamW's first moments), without dropout and, with the same masks, with
dropout and stochastic depth. An error is |device - CPU| / |CPU| over all numbers. The exit status
is 1 if one is past its bound, or if a program fails.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fact_jax import ViT, features, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.images.normalise import normalise
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import fetch, make_mesh, put, replicated, stack
from fact_jax.training.trial import Hyper, init_trial, logits_of, make_epoch, train_set
from fact_jax.tuning import METHODS

CLASSES, RATE = 100, 0.1
RANKS = {"fact_tt": 16, "fact_tk": 32}
# float32 sums in another order; bfloat16 has 8 bits, and errors of all layers add up (on a CPU
# 0.01 to 0.02).
BOUNDS = {"float32": 1e-4, "bfloat16": 0.05}

Numbers = dict[str, np.ndarray]


def measure(
    a: argparse.Namespace, device: jax.Device, name: str, noise: bool, dtype: str, attention: str
) -> Numbers:
    """Logits [b, c], loss [1] and factor gradients [number of factors] on this device."""
    config = get_variant(a.variant).replace(
        dtype=dtype, attention=attention, depth=a.depth, precision="highest"
    )
    config = config.replace(image_size=a.image_size or config.image_size)
    model, method, mesh = ViT(config), METHODS[name](rank=RANKS[name]), make_mesh(a.batch, [device])
    rng = np.random.default_rng(0)
    shape = (a.batch, config.image_size, config.image_size, 3)
    images = rng.integers(0, 255, shape, dtype=np.uint8)
    labels = (np.arange(a.batch) % CLASSES).astype(np.int32)
    base, state = (
        init_base(config, jax.random.key(0)),
        init_trial(model, method, 0, CLASSES, CLASSES),
    )
    # Fresh factors have increments of zero, and most gradients are zero there.
    factors = jax.tree.map(
        lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32),
        state.trainable["factors"],
    )
    state = state.replace(trainable={**state.trainable, "factors": factors})
    base, here = put(base, replicated(mesh)), put(state.trainable, replicated(mesh))

    @jax.jit
    def logits(base, trainable, images):
        adaptation = method.adaptation(trainable["factors"], config)
        x = features(model, base, normalise(images, "imagenet"), adaptation)
        return logits_of(trainable["head"], x, CLASSES)

    rate = np.float32(RATE) if noise else None
    hyper = Hyper(np.float32(1e-3), np.float32(1e-4), np.float32(1), rate, rate)
    trial = (state, train_set(images, labels, CLASSES), hyper, np.int32(0))
    epoch = make_epoch(model, method, "imagenet", a.batch, mesh)
    found = {} if noise else {"logits": logits(base, here, put(images, replicated(mesh)))}
    states, losses = epoch(
        base, *(stack([x], mesh) for x in trial), np.int32(0), np.int32(1)
    )  # the first epoch, of one step
    gradients = jax.tree.leaves(states.moments.mu["factors"])
    flat = np.concatenate([np.ravel(x) for x in fetch(gradients)])
    return {**fetch(found), "loss": fetch(losses).ravel(), "gradients": flat}


def compare(reference: Numbers, found: Numbers) -> dict[str, float]:
    """Relative errors by name."""
    return {
        name: float(np.linalg.norm(found[name] - x) / np.linalg.norm(x))
        for name, x in reference.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="vit_b16")
    parser.add_argument("--image_size", type=int, default=0, help="0: the variant's")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    kinds = [("float32", "xla"), ("bfloat16", "xla")]
    kinds += [("bfloat16", "cudnn")] if device.platform == "gpu" else []
    cases = list(product(RANKS, (False, True)))

    def row(case: tuple[str, bool], kind: tuple[str, str], reference: Numbers) -> dict[str, Any]:
        name, noise = case
        about = {"method": name, "dropout": noise, "dtype": kind[0], "attention": kind[1]}
        try:
            errors = compare(reference, measure(a, device, *case, *kind))
        except Exception as error:  # the other programs are still of interest
            text = " ".join(str(error).split())[:300]
            return {**about, "failed": f"{type(error).__name__}: {text}", "passed": False}
        # A NaN is not below the bound.
        passed = all(error <= BOUNDS[kind[0]] for error in errors.values())
        return {**about, "errors": errors, "bound": BOUNDS[kind[0]], "passed": passed}

    def store() -> None:
        if a.out:
            settings = {k: v for k, v in vars(a).items() if k != "out"}
            content = {"settings": settings, "rows": rows, "environment": environment()}
            a.out.write_text(json.dumps(content, indent=1) + "\n")

    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the time is XLA's compiling
        references = pool.map(lambda case: measure(a, cpu, *case, "float32", "xla"), cases)
        known = dict(zip(cases, references, strict=True))
        for one in pool.map(lambda x: row(*x, known[x[0]]), product(cases, kinds)):
            rows.append(one)
            store()  # at once, should the time not suffice for the rest
    columns = ("method", "dropout", "dtype", "attention")
    quantities = ("logits", "loss", "gradients")
    table = Table(*columns, *quantities, "bound", "", title=f"{device.device_kind} against the CPU")
    for r in rows:
        errors = [f"{r['errors'][q]:.1e}" if q in r.get("errors", {}) else "" for q in quantities]
        verdict = "passed" if r["passed"] else r.get("failed", "TOO FAR")
        table.add_row(*(str(r[c]) for c in columns), *errors, str(r.get("bound", "")), verdict)
    Console(width=140).print(table)
    if not all(r["passed"] for r in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
