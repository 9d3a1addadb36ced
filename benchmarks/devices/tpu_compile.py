"""Compiles training, merging and prediction for TPUs, without a TPU.

    make tpu-compile
    python -m benchmarks.tpu_compile [--programs trials unrolled split ...] [--out FILE]

libtpu, from PyPI's ``jax[tpu]``, holds the real TPU compiler and needs no TPU to compile for one.
The programs are those that `python -m experiments.vtab` runs: FacT-TT of rank 16 on ViT-B/16 at
224 pixels in bfloat16, batch 64, the 1,000 images of a VTAB-1K task on the chip of each trial, and
evaluation in batches of 256. `trials`: one trial a chip of v5e-8 and of a 16-chip slice.
`unrolled`: a trial on a chip, the loop over the blocks written out, for the bytes that a step
moves. `split`: one trial over eight chips. `evaluation`: merging and prediction over all chips.
`bank`: a mixed batch of many tasks, with the images' gathered factors and heads as arguments.
`capacity`: the most trials of batch 64 on one chip, and the largest batch of one trial, for every
rematerialisation setting. All training is with dropout and stochastic depth. Nothing runs: no
speed.

Rows are added to an existing `--out` if its settings, jax and libtpu are the same: a new row
replaces the old one of the same program, and all others stay. Every row holds its commit and the
versions of the other packages.
"""

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.common import option_parser, write_json
from benchmarks.devices.tpu_programs import (
    BATCH,
    EVAL_BATCH,
    PADDED_CLASSES,
    RANK,
    TOPOLOGIES,
    TRAIN_IMAGES,
    VARIANT,
    compile_bank,
    compile_epoch,
    compile_evaluation,
    make_model,
    slice_devices,
)
from fact_jax.backbone.config import REMATS
from fact_jax.errors import UserError
from fact_jax.sweep.versions import environment

PARTS = ("trials", "unrolled", "split", "evaluation", "bank", "capacity")
# Of a v5e's 16 GiB (cloud.google.com/tpu/docs/v5e) the compiler leaves a program 15.75 ("exceeds
# available HBM (15.75G)" is its refusal). Held here against arguments, results, temporary and code.
CHIP_GIB = 15.75
BATCH_UNIT = 32  # steps of the search for the largest batch
# Where the searches for the largest begin: near the result, since a compilation takes minutes.
FIRST = {
    "trials": {"none": 3, "attention": 4, "block": 13},
    "batch": {"none": 224, "attention": 288, "block": 768},
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
    search = largest(
        lambda size: compiled(size).get("gib_per_chip", {}).get("total"),
        FIRST[axis][remat],
        1 if axis == "trials" else BATCH_UNIT,
        constant,
    )
    tried = {size: compiled(size) for size in search["gib"]}
    return {
        "program": f"{axis} on a chip",
        "remat": remat,
        **search,
        "refused": {size: r["refused"] for size, r in tried.items() if "refused" in r},
        "recomputed_by_compiler": tried.get(search["largest"], {}).get("recomputed_by_compiler"),
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
    if "bank" in parts:
        for chips in (1, 8):
            yield from compile_bank(chips)
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
    """All parts but capacity: one row a program and mesh."""
    title = (
        f"Compiled for {kind} ({CHIP_GIB:g} GiB a chip): FacT-TT rank {RANK}, {VARIANT}, "
        f"bfloat16, batch {BATCH}, evaluation batch {EVAL_BATCH}"
    )
    columns = ("program", "trials", "mesh trial x data", "GiB a chip: arguments", "temporary")
    more = ("all", "matrix TFLOPs, all chips", "collectives of one run of it", "compiled in s")
    table = Table(*columns, *more, title=title)
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
    title = "What fits one chip (GiB of all sizes compiled; - is refused)"
    table = Table("what", "remat", "largest", "GiB", "compiled in s", title=title)
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
    parser = option_parser("FacT's programs compiled for TPU v5e, without one.")
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
            write_json(args.out, record | {"results": rows})
    console.print(program_table([r for r in rows if "mesh" in r], kind))
    console.print(capacity_table([r for r in rows if "largest" in r]))


if __name__ == "__main__":
    main()
