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

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks.common import CLASSES, option_parser, store
from benchmarks.network import network, training
from fact_jax import ViT, features
from fact_jax.images.normalise import normalise
from fact_jax.sweep.versions import environment
from fact_jax.training.mesh import fetch, make_mesh
from fact_jax.training.trial import logits_of
from fact_jax.tuning import METHODS

RATE = 0.1
RANKS = {"fact_tt": 16, "fact_tk": 32}
# float32 sums in another order; bfloat16 has 8 bits, and errors of all layers add up (on a CPU
# 0.01 to 0.02).
BOUNDS = {"float32": 1e-4, "bfloat16": 0.05}

Numbers = dict[str, np.ndarray]


class Case(NamedTuple):
    """A method, with or without dropout, in a compute type, with a kind of attention."""

    method: str
    dropout: bool
    dtype: str = "float32"
    attention: str = "xla"


def measure(a: argparse.Namespace, device: jax.Device, case: Case) -> Numbers:
    """Logits [b, c], loss [1] and factor gradients [number of factors] on this device."""
    config = network(a).replace(
        dtype=case.dtype, attention=case.attention, depth=a.depth, precision="highest"
    )
    model, method = ViT(config), METHODS[case.method](rank=RANKS[case.method])
    epoch, arguments = training(
        model, method, a.batch, make_mesh(a.batch, [device]), rate=RATE if case.dropout else None
    )
    base, states, trials, *_ = arguments
    # Fresh factors have increments of zero, and most gradients are zero there.
    rng = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda x: jax.device_put(
            np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32), x.sharding
        ),
        states.trainable["factors"],
    )
    arguments[1] = states.replace(trainable={**states.trainable, "factors": factors})

    @jax.jit
    def logits(base, trainable, images):
        adaptation = method.adaptation(trainable["factors"], config)
        x = features(model, base, normalise(images, "imagenet"), adaptation)
        return logits_of(trainable["head"], x, CLASSES)

    numbers = {}
    if not case.dropout:
        trial = jax.tree.map(lambda x: x[0], arguments[1].trainable)
        numbers["logits"] = fetch(logits(base, trial, trials.data.images[0]))
    states, losses = epoch(*arguments)
    first_moments = optax.tree_utils.tree_get(states.moments, "mu")
    gradients = jax.tree.leaves(first_moments["factors"])
    flat = np.concatenate([np.ravel(x) for x in fetch(gradients)])
    return {**numbers, "loss": fetch(losses).ravel(), "gradients": flat}


def compare(reference: Numbers, measured: Numbers) -> dict[str, float]:
    """Relative errors by name."""
    return {
        name: float(np.linalg.norm(measured[name] - x) / np.linalg.norm(x))
        for name, x in reference.items()
    }


def row(a: argparse.Namespace, device: jax.Device, case: Case, reference: Numbers) -> dict:
    """The errors of a case on this device, and whether they are within the bound."""
    try:
        errors = compare(reference, measure(a, device, case))
    except (RuntimeError, ValueError) as error:  # the other programs are still of interest
        text = " ".join(str(error).split())[:300]
        return {**case._asdict(), "failed": f"{type(error).__name__}: {text}", "passed": False}
    # A NaN is not below the bound.
    passed = all(error <= BOUNDS[case.dtype] for error in errors.values())
    return {**case._asdict(), "errors": errors, "bound": BOUNDS[case.dtype], "passed": passed}


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """A line for each row."""
    quantities = ("logits", "loss", "gradients")
    table = Table(*Case._fields, *quantities, "bound", "", title=title)
    for r in rows:
        errors = [f"{r['errors'][q]:.1e}" if q in r.get("errors", {}) else "" for q in quantities]
        verdict = "passed" if r["passed"] else r.get("failed", "TOO FAR")
        table.add_row(*(str(r[c]) for c in Case._fields), *errors, str(r.get("bound", "")), verdict)
    return table


def main() -> None:
    parser = option_parser(__doc__, "variant", "image_size", "batch")
    parser.add_argument("--depth", type=int, default=3)
    a = parser.parse_args()
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    kinds = [("float32", "xla"), ("bfloat16", "xla")]
    kinds += [("bfloat16", "cudnn")] if device.platform == "gpu" else []
    plain = [Case(*pair) for pair in product(RANKS, (False, True))]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the time is XLA's compiling
        references = dict(
            zip(plain, pool.map(lambda case: measure(a, cpu, case), plain), strict=True)
        )
        cases = [
            (case._replace(dtype=dtype, attention=attention), references[case])
            for case, (dtype, attention) in product(plain, kinds)
        ]
        for one in pool.map(lambda pair: row(a, device, *pair), cases):
            rows.append(one)
            # At once, should the time not suffice for the rest.
            store(a, {"rows": rows, "environment": environment()})
    Console(width=140).print(table_of(rows, f"{device.device_kind} against the CPU"))
    if not all(r["passed"] for r in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
