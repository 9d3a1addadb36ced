"""Compiles the training epoch and the evaluation for TPU chips that are not there.

    make tpu-compile    or    python -m benchmarks.tpu_compile --out FILE.json

libtpu, from PyPI's ``jax[tpu]``, holds the real TPU compiler and needs no TPU to compile for one.
The programs are those that `python -m experiments.vtab` runs: FacT-TT of rank 16 on ViT-B/16 at
224 pixels in bfloat16, batch 64, the 1,000 images of a VTAB-1K task on every chip, and evaluation
in batches of 256. What is printed: memory of a chip, matrix FLOPs, what the chips send to each
other. No speed: nothing runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding
from rich.console import Console
from rich.table import Table

from fact_jax import ViT, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import make_programs
from fact_jax.training.mesh import batch_sharded, make_mesh, replicated
from fact_jax.training.trial import Hyper, TrainSet, init_trial, make_epoch
from fact_jax.tuning import METHODS

TOPOLOGY, CHIP_GIB = "v5e:2x4", 16.0  # cloud.google.com/tpu/docs/v5e: 16 GB of HBM a chip
VARIANT, RANK, TRAIN_IMAGES, BATCH, EVAL_BATCH = "vit_b16", 16, 1000, 64, 256
NUM_CLASSES, PADDED_CLASSES = 47, 397  # DTD in a sweep of all 19 tasks
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def programs(mesh: Mesh) -> dict[str, tuple[Any, tuple, tuple[int, ...]]]:
    """The jitted programs with abstract arguments and the trip counts of their nested loops.

    The epoch's outer loop counts 1: all figures are of one step.
    """
    model = ViT(get_variant(VARIANT).replace(dtype="bfloat16"))
    method = METHODS["fact_tt"](rank=RANK)

    def struct(tree, sharding: NamedSharding | None = None):
        where = sharding or replicated(mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    side, depth, number = model.config.image_size, model.config.depth, array(jnp.float32)
    base = struct(jax.eval_shape(lambda: init_base(model.config, jax.random.key(0))))
    state = struct(
        jax.eval_shape(lambda: init_trial(model, method, 0, NUM_CLASSES, PADDED_CLASSES))
    )
    images = array(jnp.uint8, TRAIN_IMAGES, side, side, 3)
    labels, count = array(jnp.int32, TRAIN_IMAGES), array(jnp.int32)
    data = struct(TrainSet(images, labels, count, count))
    hyper = struct(Hyper(number, number, number, number, number))
    key = struct(jax.eval_shape(lambda: jax.random.key(0)))
    test_images = struct(array(jnp.uint8, EVAL_BATCH, side, side, 3), batch_sharded(mesh))

    epoch = make_epoch(model, method, "imagenet", BATCH, mesh)
    merged, predict = make_programs(model, method, "imagenet")
    factors, head = state.trainable["factors"], state.trainable["head"]
    return {
        "training step": (epoch, (base, state, data, hyper, key), (1, depth - 2)),
        "merging": (merged, (base, factors, struct(number)), ()),
        "prediction": (predict, (base, head, struct(count), test_images), (depth - 2,)),
    }


def matrix_flops(jaxpr) -> int:
    """2 x multiplications of all dots and convolutions on all chips; while loops count once.

    XLA's own count takes the body of every loop once, also that of the scan over the layers.
    Products that nothing reads, such as gradients of frozen kernels, are left out, as XLA does.
    """
    total = 0
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            if name == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                terms = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            else:
                terms = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out) * terms
        times = params["length"] if name == "scan" else 1
        total += times * sum(
            matrix_flops(inner) for inner in jax.extend.core.jaxprs_in_params(params)
        )
    return total


def collectives(hlo: str, trips: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Each collective of a compiled program: kind, bytes, how often a step runs it, origin."""
    for match in filter(None, map(_COLLECTIVE.search, hlo.splitlines())):
        arrays, op = _ARRAY.findall(match["type"]), _OP_NAME.search(match.string)
        size = sum(
            int(bits) * math.prod(int(n) for n in shape.split(",") if n) // 8
            for _, bits, shape in arrays
        )
        yield {
            "kind": match["kind"],
            "dtypes": sorted({kind + bits for kind, bits, _ in arrays}),
            "arrays": len(arrays),
            "bytes": size,
            "times": math.prod(trips[: op[1].count("while/body") if op else 0]),
            "op": op and op[1],
        }


def compile_for(mesh: Mesh) -> Iterator[dict[str, Any]]:
    """Compiles each program for the mesh's chips; what the compiler says of it."""
    for name, (program, arguments, trips) in programs(mesh).items():
        traced = program.trace(*arguments)
        started = time.perf_counter()
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
        seconds = time.perf_counter() - started
        memory, hlo = compiled.memory_analysis(), compiled.as_text()
        sizes = {
            "arguments": memory.argument_size_in_bytes,
            # Donated arguments are counted as arguments.
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }
        gib = {key: value / 2**30 for key, value in sizes.items()}
        yield {
            "program": name,
            "chips": mesh.size,
            "gib_per_chip": {**gib, "total": sum(gib.values())},
            "matrix_flops_all_chips": matrix_flops(traced.jaxpr.jaxpr),
            "xla_flops_per_chip_loops_once": (compiled.cost_analysis() or {}).get("flops"),
            "collectives": list(collectives(hlo, trips)),
            "compile_seconds": seconds,
        }


def make_table(results: list[dict[str, Any]], kind: str) -> Table:
    """One row a program and number of chips."""
    table = Table(
        title=f"Compiled for {kind} ({CHIP_GIB:g} GiB a chip): FacT-TT rank {RANK}, {VARIANT}, "
        f"bfloat16, batch {BATCH}, evaluation batch {EVAL_BATCH}"
    )
    columns = ("program", "chips", "GiB a chip", "of it temporary", "matrix TFLOPs, all chips")
    for column in (*columns, "collectives of one run of it", "compiled in s"):
        table.add_column(column)
    for r in results:
        gib = r["gib_per_chip"]
        texts = [
            f"{c['times']} x {c['kind']} of {c['arrays']} {'/'.join(c['dtypes'])}, "
            f"{c['times'] * c['bytes'] / 1e6:.2f} MB"
            for c in r["collectives"]
        ]
        table.add_row(
            r["program"], str(r["chips"]), f"{gib['total']:.2f}", f"{gib['temporary']:.2f}",
            f"{r['matrix_flops_all_chips'] / 1e12:.2f}", "\n".join(texts) or "none",
            f"{r['compile_seconds']:.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description="FacT's programs compiled for TPU v5e, without one."
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--chips", type=int, nargs="+", default=[8, 1], help="how many of the 2x4 slice to use"
    )
    args = parser.parse_args()
    # Before the first use of a device: libtpu shall neither look for a TPU in the cloud's metadata
    # nor claim one.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    results: list[dict[str, Any]] = []
    for chips in args.chips:
        results += compile_for(make_mesh(math.gcd(BATCH, EVAL_BATCH), devices[:chips]))
    Console(width=150).print(make_table(results, devices[0].device_kind))
    record = {
        "target": f"{TOPOLOGY}, {devices[0].device_kind} (compiled only, nothing was run)",
        "settings": {
            "variant": VARIANT, "dtype": "bfloat16", "method": f"fact_tt, rank {RANK}",
            "train_images": TRAIN_IMAGES, "batch": BATCH, "eval_batch": EVAL_BATCH,
            "padded_classes": PADDED_CLASSES,
        },
        "environment": environment() | {"libtpu": importlib.metadata.version("libtpu")},
        "results": results,
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
