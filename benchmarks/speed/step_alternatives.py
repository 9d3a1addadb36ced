"""Cost of a training step that is written otherwise: each choice undone, one at a time.

    python -m benchmarks.step_alternatives [--batch 8] [--rounds 4] [--out FILE.json]

FacT-TT of rank 16 on ViT-B/16 at 224 pixels (or another --variant), float32, without dropout: loss
and gradients of factors and head. All programs are compiled first, then run in turn, so that a
noisy minute hits them all; a time is the best of the rounds, over ours. Temporary memory and FLOPs
are XLA's (the FLOPs from a program whose loop over the blocks is written out).
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks.common import CLASSES, option_parser, store
from fact_jax import FacTTT, ViT, features, get_variant
from fact_jax.backbone import activations, attention, block, blocks, dense, kinds, vit
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.versions import environment
from fact_jax.training.trial import init_head, logits_of

METHOD = FacTTT(16)


def plain_autodiff(x, kernels, pairs):
    return [x @ w for w in dense._merged_kernels(x, kernels, pairs)]


def two_paths(x, kernels, pairs):
    (pair,) = pairs
    increments = dense._low_rank(x, pair, [w.shape[-1] for w in kernels])
    return [x @ w.astype(x.dtype) + z for w, z in zip(kernels, increments, strict=True)]


class OneScan(blocks.Blocks):
    def __call__(self, x):
        return super()._scan(x, 0, self.config.depth)[0][:, :1], None


def token_major(config, q, k, v, hidden, bias):
    q, k, v = (y.reshape(*y.shape[:2], config.num_heads, -1) for y in (q, k, v))
    scores = jnp.einsum("bmhd,bnhd->bhmn", q * q.shape[-1] ** -0.5, k)
    out = jnp.einsum("bhmn,bnhd->bmhd", attention._softmax(scores), v)
    return out.reshape(*out.shape[:2], -1)


def keep_all(config):
    return jax.checkpoint_policies.everything_saveable


UNROLLED = "the loop over the blocks written out"
ALTERNATIVES: dict[str, tuple[Any, str, Any] | None] = {
    "ours": None,
    "plain autodiff of the merged product": (dense, "_merged", plain_autodiff),
    "two paths instead of a merged product": (dense, "_merged", two_paths),
    "the factors' gradients as autodiff writes them": (dense, "_times", jnp.matmul),
    "all blocks in the scan, the last for all tokens": (vit, "Blocks", OneScan),
    "keep whatever autodiff asks for": (blocks, "_policy", keep_all),
    "GELU by erfc (jax.nn.gelu)": (
        kinds,
        "MLP_ACTIVATIONS",
        {**activations.MLP_ACTIVATIONS, "exact": lambda x: jax.nn.gelu(x, approximate=False)},
    ),
    "attention on [b, n, h, d]": (block, "attention", token_major),
    UNROLLED: None,  # a setting of the ViT
}


@contextlib.contextmanager
def undone(name: str) -> Iterator[None]:
    change = ALTERNATIVES[name]
    with mock.patch.object(*change) if change else contextlib.nullcontext():
        jax.clear_caches()  # `features` keeps its traces
        yield
    jax.clear_caches()


def gradients(config, trainable, base, images, labels):
    """The step's loss and gradients."""

    def loss(trainable):
        changes = METHOD.adaptation(trainable["factors"], config)
        x = features(ViT(config), base, images, changes)
        logits = logits_of(trainable["head"], x, CLASSES)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.value_and_grad(loss)(trainable)


def main() -> None:
    a = option_parser(__doc__, "variant", "batch", "rounds", rounds=4).parse_args()
    console, config = Console(markup=False), get_variant(a.variant)
    base = init_base(config, jax.random.key(0))
    factors = METHOD.init(jax.random.key(1), config)
    factors["V"] = 0.01 * jax.random.normal(jax.random.key(2), factors["V"].shape)
    head = init_head(jax.random.key(3), config.width, CLASSES, CLASSES)
    trainable = {"factors": factors, "head": head}
    shape = (a.batch, config.image_size, config.image_size, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    arguments = (trainable, base, images, np.arange(a.batch) % CLASSES)

    rows: dict[str, dict[str, Any]] = {}
    programs, reference = {}, None
    for name in ALTERNATIVES:
        with undone(name):
            # A function of its own for each: traces are kept by function.
            lowered = [
                jax.jit(lambda *args, c=c: gradients(c, *args)).lower(*arguments)
                for c in (config.replace(unroll=name == UNROLLED), config.replace(unroll=True))
            ]
        compiled, unrolled = (one.compile() for one in lowered)
        programs[name] = compiled
        rows[name] = {
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "flops": unrolled.cost_analysis()["flops"],
            "seconds": [],
        }
        loss, gradient = jax.block_until_ready(compiled(*arguments))
        reference = reference or gradient
        for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-3 * np.abs(theirs).max())
        console.print(f"{name}: compiled, loss {loss:.5f}", highlight=False)
    for _ in range(a.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            rows[name]["seconds"].append(time.perf_counter() - start)

    table = Table("step", "time / ours", "temporary GB", "FLOPs / ours")
    ours = rows["ours"]
    for name, row in rows.items():
        row["time_ratio"] = min(row["seconds"]) / min(ours["seconds"])
        row["flops_ratio"] = row["flops"] / ours["flops"]
        values = (row["time_ratio"], row["temporary_bytes"] / 1e9, row["flops_ratio"])
        table.add_row(name, *(f"{v:.2f}" for v in values))
    console.print(table)
    store(a, {"alternatives": rows, "environment": environment()})


if __name__ == "__main__":
    main()
