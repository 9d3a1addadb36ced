"""Compiles training, merging and prediction for TPU chips that are not there.

    make tpu-compile
    python -m benchmarks.tpu_compile [--programs trials unrolled split ...] [--out FILE]

libtpu, from PyPI's ``jax[tpu]``, holds the real TPU compiler and needs no TPU to compile for one.
The programs are those that `python -m experiments.vtab` runs: FacT-TT of rank 16 on ViT-B/16 at
224 pixels in bfloat16, batch 64, the 1,000 images of a VTAB-1K task on the chip of each trial, and
evaluation in batches of 256. `trials`: one trial a chip of v5e-8 and of a 16-chip slice.
`unrolled`: a trial on a chip, the loop over the blocks written out, for the bytes that a step
moves. `split`: one trial over eight chips. `evaluation`: merging and prediction over all chips.
`capacity`: the most trials of batch 64 on one chip, and the largest batch of one trial, for every
rematerialisation setting. All training is with dropout and stochastic depth. Nothing runs: no
speed.

An existing `--out` is added to, if it is of the same settings, jax and libtpu: a row is replaced by
its new self, all others stay. Every row holds the commit that it was compiled from and the versions
of what else was there.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import NamedSharding
from rich.console import Console
from rich.table import Table

from fact_jax import Adaptation, ViT, get_variant
from fact_jax.backbone.config import REMATS
from fact_jax.backbone.vit import init_base
from fact_jax.errors import UserError
from fact_jax.sweep.versions import environment
from fact_jax.training.evaluation import make_programs
from fact_jax.training.mesh import batch_sharded, make_mesh, replicated, trial_sharded
from fact_jax.training.trial import Hyper, TrainSet, init_trial, make_epoch
from fact_jax.tuning import METHODS

PARTS = ("trials", "unrolled", "split", "evaluation", "capacity")
TOPOLOGIES = {8: "v5e:2x4", 16: "v5e:4x4"}
# Of a v5e's 16 GiB (cloud.google.com/tpu/docs/v5e) the compiler leaves a program 15.75 ("exceeds
# available HBM (15.75G)" is its refusal). Held here against arguments, results, temporary and code.
CHIP_GIB = 15.75
VARIANT, RANK, TRAIN_IMAGES, BATCH, EVAL_BATCH = "vit_b16", 16, 1000, 64, 256
BATCH_UNIT = 32  # steps of the search for the largest batch
# Where the searches for the largest begin: near the result, since a compilation takes minutes.
FIRST = {
    "trials": {"none": 3, "attention": 4, "block": 13},
    "batch": {"none": 224, "attention": 288, "block": 768},
}
NUM_CLASSES, PADDED_CLASSES = 47, 397  # DTD in a sweep of all 19 tasks
METHOD = METHODS["fact_tt"](rank=RANK)
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def slice_devices(chips: int) -> list[Any]:
    """Compile-only devices of a v5e slice; of the 8-chip one if there are fewer."""
    from jax.experimental import topologies

    name = TOPOLOGIES.get(chips, TOPOLOGIES[8])
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices[:chips]


def struct(tree: Any, sharding: NamedSharding | None = None, lead: tuple[int, ...] = ()) -> Any:
    """A tree of arrays or shapes as abstract arguments, with further leading axes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=sharding), tree
    )


def make_model(remat: str = "none", unroll: bool = False) -> tuple[ViT, Any]:
    """The model, and its base's shapes."""
    model = ViT(get_variant(VARIANT).replace(dtype="bfloat16", remat=remat, unroll=unroll))
    return model, jax.eval_shape(lambda: init_base(model.config, jax.random.key(0)))


def trial_state(model: ViT) -> Any:
    return jax.eval_shape(lambda: init_trial(model, METHOD, 0, NUM_CLASSES, PADDED_CLASSES))


@functools.cache
def compile_epoch(
    chips: int, trials: int, batch: int = BATCH, remat: str = "none", unroll: bool = False
) -> dict[str, Any]:
    """Training of stacked trials.

    The loop over an epoch's steps counts once: all figures are of one step.
    """
    mesh = make_mesh(batch, slice_devices(chips), trials)
    model, base = make_model(remat, unroll)
    number, integer = struct(jnp.float32(0)), struct(jnp.int32(0))
    side, images = model.config.image_size, max(TRAIN_IMAGES, batch)
    data = TrainSet(
        jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images,), jnp.int32),
        integer,
        integer,
    )
    hyper = Hyper(number, number, number, dropout_rate=number, drop_path_rate=number)
    stacks = (trial_state(model), data, hyper, integer)
    every = replicated(mesh)
    arguments = (
        struct(base, every),
        *struct(stacks, trial_sharded(mesh), (trials,)),
        *struct((integer, integer), every),
    )
    epoch = make_epoch(model, METHOD, "imagenet", batch, mesh)
    result = compile_program(epoch, arguments, (1,) if unroll else (1, model.config.depth - 2))
    labels = {"trials": trials, "batch": batch, "remat": remat}
    name = "training step, unrolled" if unroll else "training step"
    return {"program": name, **labels, "mesh": dict(mesh.shape), **result}


def compile_evaluation(chips: int) -> Iterator[dict[str, Any]]:
    """Merging, and prediction whose batch is split over all chips."""
    mesh = make_mesh(EVAL_BATCH, slice_devices(chips))
    model, shapes = make_model()
    every, side = replicated(mesh), model.config.image_size
    trainable = struct(trial_state(model).trainable, every)
    base, number = struct(shapes, every), struct(jnp.float32(0), every)
    images = jax.ShapeDtypeStruct(
        (EVAL_BATCH, side, side, 3), jnp.uint8, sharding=batch_sharded(mesh)
    )
    merged, predict = make_programs(model, METHOD, "imagenet")
    classes, trips = struct(jnp.int32(0), every), (model.config.depth - 2,)
    for name, program, arguments, loops in (
        ("merging", merged, (base, trainable["factors"], number), ()),
        ("prediction", predict, ((base, Adaptation()), trainable["head"], classes, images), trips),
    ):
        labels = {"trials": 1, "batch": EVAL_BATCH if name == "prediction" else 0}
        result = compile_program(program, arguments, loops)
        yield {"program": name, **labels, "mesh": dict(mesh.shape), **result}


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
        if name == "factor_product":  # backbone/dense.py's
            terms = equation.invars[0].aval.shape[-1]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * terms
        times = params["length"] if name == "scan" else 1
        if name == "shard_map":  # its shapes are those of one shard
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        total += times * sum(
            matrix_flops(inner) for inner in jax.extend.core.jaxprs_in_params(params)
        )
    return total


def collectives(hlo: str, trips: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Each collective of a compiled program: kind, bytes, how often a step runs it, origin.

    `trips` are the turns of the program's nested loops, outermost first.
    """
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


def compile_program(program: Any, arguments: tuple, trips: tuple[int, ...]) -> dict[str, Any]:
    """Compiles a jitted program: its numbers, or {"refused": message} if memory is too small."""
    traced = program.trace(*arguments)
    started = time.perf_counter()
    try:
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            "refused": str(error).split("\n\n")[0],
            "compile_seconds": time.perf_counter() - started,
        }
    seconds = time.perf_counter() - started
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    cost = compiled.cost_analysis() or {}
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        # Donated arguments are counted as arguments.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    gib = {key: value / 2**30 for key, value in sizes.items()}
    return {
        "gib_per_chip": {
            **gib,
            "total": sum(gib.values()),
            # The compiler's own figure of what lives at once; without gaps between the buffers.
            "peak": memory.peak_memory_in_bytes / 2**30,
        },
        "matrix_flops_all_chips": matrix_flops(traced.jaxpr.jaxpr),
        # Both of one chip, with the body of every loop counted once.
        "xla_flops_loops_once": cost.get("flops"),
        "xla_bytes_accessed_loops_once": cost.get("bytes accessed"),
        # Instructions that the compiler itself repeats in order to save memory.
        "recomputed_by_compiler": len(re.findall(r"^ *%?\S+\.remat\S* = ", hlo, re.MULTILINE)),
        "collectives": list(collectives(hlo, trips)),
        "compile_seconds": seconds,
    }


def largest(
    measure: Callable[[int], float | None], first: int, unit: int, constant: float
) -> dict[str, Any]:
    """The largest multiple of `unit` that fits a chip, in few compilations.

    `measure` gives the GiB of a size, None where the compiler refuses it. Memory is nearly linear:
    after `first` comes what the line through the two largest that fit promises (at the beginning
    one of them is size 0 with `constant` GiB), until that is no more or the next size is known to
    be too large. A good `first` saves time and changes nothing else.
    """
    gib: dict[int, float | None] = {}
    guess = first
    while guess and guess not in gib:
        gib[guess] = measure(guess)
        fitting = [(x, y) for x, y in sorted(gib.items()) if y and y <= CHIP_GIB]
        too_large = min([x for x, y in gib.items() if not y or y > CHIP_GIB], default=None)
        if not fitting:
            guess = too_large - unit
            continue
        (x0, y0), (x1, y1) = [(0, constant), *fitting][-2:]
        promised = int((x1 + (CHIP_GIB - y1) * (x1 - x0) / (y1 - y0)) // unit) * unit
        guess = max(x1, promised if too_large is None else min(promised, too_large - unit))
    return {"largest": guess, "gib": gib}


def capacity(remat: str, axis: str) -> dict[str, Any]:
    """The most trials at batch 64, or the largest batch of one trial, on one chip."""

    def compiled(size: int) -> dict[str, Any]:
        sizes = {"trials": 1, "batch": BATCH} | {axis: size}
        return compile_epoch(1, sizes["trials"], sizes["batch"], remat)

    _, base = make_model()
    constant = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base)) / 2**30
    found = largest(
        lambda size: compiled(size).get("gib_per_chip", {}).get("total"),
        FIRST[axis][remat],
        1 if axis == "trials" else BATCH_UNIT,
        constant,
    )
    tried = {size: compiled(size) for size in found["gib"]}
    return {
        "program": f"{axis} on a chip",
        "remat": remat,
        **found,
        "refused": {size: r["refused"] for size, r in tried.items() if "refused" in r},
        "recomputed_by_compiler": tried.get(found["largest"], {}).get("recomputed_by_compiler"),
        "compile_seconds": {size: r["compile_seconds"] for size, r in tried.items()},
    }


def run(parts: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of the chosen parts, one by one."""
    if "trials" in parts:
        for chips in TOPOLOGIES:
            yield compile_epoch(chips, chips)
    if "unrolled" in parts:
        yield compile_epoch(1, 1, unroll=True)
    if "split" in parts:
        yield compile_epoch(8, 1)
    if "evaluation" in parts:
        for chips in TOPOLOGIES:
            yield from compile_evaluation(chips)
    if "capacity" in parts:
        for axis in ("trials", "batch"):
            for remat in REMATS:
                yield capacity(remat, axis)


def name_of(row: dict[str, Any]) -> tuple:
    """The name of a row: two rows of the same name are the same measurement."""
    mesh = row.get("mesh", {})
    return (row["program"], *mesh.values(), row.get("trials"), row.get("remat"))


def known_rows(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an existing file; UserError if it is from another target, jax, libtpu, or from
    other settings. Versions of other packages do not matter; its rows are given their own."""
    if not path.exists():
        return []
    old = json.loads(path.read_text())
    compilers = record["environment"]
    others = {k: v for k, v in old["environment"].items() if k not in compilers}
    old["environment"] = {k: old["environment"].get(k) for k in compilers}
    for name, value in record.items():
        if old[name] != value:
            raise UserError(f"{path}: {name} is {old[name]}, now {value}. Choose another file.")
    return [{**r, "versions": r.get("versions", others)} for r in old["results"]]


def program_table(rows: list[dict[str, Any]], kind: str) -> Table:
    """The parts trials, split and evaluation: one row a program and mesh."""
    table = Table(
        title=f"Compiled for {kind} ({CHIP_GIB:g} GiB a chip): FacT-TT rank {RANK}, {VARIANT}, "
        f"bfloat16, batch {BATCH}, evaluation batch {EVAL_BATCH}"
    )
    columns = ("program", "trials", "mesh trial x data", "GiB a chip: arguments", "temporary")
    more = ("all", "matrix TFLOPs, all chips", "collectives of one run of it", "compiled in s")
    for column in (*columns, *more):
        table.add_column(column)
    for r in rows:
        gib = r["gib_per_chip"]
        texts = [
            f"{c['times']} x {c['kind']} of {c['arrays']} {'/'.join(c['dtypes'])}, "
            f"{c['times'] * c['bytes'] / 1e6:.2f} MB"
            for c in r["collectives"]
        ]
        table.add_row(
            r["program"],
            str(r["trials"]),
            "x".join(map(str, r["mesh"].values())),
            f"{gib['arguments']:.2f}",
            f"{gib['temporary']:.2f}",
            f"{gib['total']:.2f}",
            f"{r['matrix_flops_all_chips'] / 1e12:.2f}",
            "\n".join(texts) or "none",
            f"{r['compile_seconds']:.0f}",
        )
    return table


def capacity_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="What fits one chip (GiB of all sizes compiled; - is refused)")
    for column in ("what", "remat", "largest", "GiB", "compiled in s"):
        table.add_column(column)
    for r in rows:
        texts = [f"{x}: {'-' if y is None else f'{y:.2f}'}" for x, y in r["gib"].items()]
        table.add_row(
            r["program"],
            r["remat"],
            str(r["largest"]),
            ", ".join(texts),
            f"{sum(r['compile_seconds'].values()):.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description="FacT's programs compiled for TPU v5e, without one."
    )
    parser.add_argument("--out", type=Path, help="JSON file to write, or to add rows to")
    parser.add_argument("--programs", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
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
    console, kind = Console(width=150), slice_devices(8)[0].device_kind
    versions = environment()
    commit = versions.pop("commit")
    compilers = {name: versions.pop(name) for name in ("jax", "jaxlib")}
    compilers["libtpu"] = importlib.metadata.version("libtpu")
    record: dict[str, Any] = {
        "target": f"v5e, {kind} (compiled only, nothing was run)",
        "settings": {
            "variant": VARIANT,
            "dtype": "bfloat16",
            "method": f"fact_tt, rank {RANK}",
            "train_images": TRAIN_IMAGES,
            "batch": BATCH,
            "eval_batch": EVAL_BATCH,
            "padded_classes": PADDED_CLASSES,
            "gib_of_a_chip": CHIP_GIB,
        },
        "environment": compilers,
    }
    try:
        rows = known_rows(args.out, record) if args.out else []
    except UserError as error:
        parser.error(str(error))
    for row in run(args.programs):
        row = json.loads(json.dumps(row | {"commit": commit, "versions": versions}))
        rows = [r for r in rows if name_of(r) != name_of(row)] + [row]
        console.print(f"{name_of(row)}: done", highlight=False, markup=False)
        if args.out:  # at once: what is done stays if a later compilation is broken off
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record | {"results": rows}, indent=1) + "\n")
    console.print(program_table([r for r in rows if "mesh" in r], kind))
    console.print(capacity_table([r for r in rows if "largest" in r]))


if __name__ == "__main__":
    main()
