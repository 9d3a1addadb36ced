"""Trials on chips of a v5e-8 exchange nothing and fit; split over chips they exchange gradients."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.devices.tpu_compile import CHIP_GIB, collectives, known_rows, largest, matrix_flops
from fact_jax import UserError

ROOT = Path(__file__).parents[1]
STORED = ROOT / "benchmarks/results/tpu_compile.json"


def test_flops_count_every_turn_of_a_scan():
    def net(x, kernels, filters):
        x = jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]  # 5 of 3x4 @ 4x4
        image = jnp.zeros((2, 8, 8, 3))
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            image, filters, (4, 4), "VALID", dimension_numbers=dimensions
        )
        return x, y  # y: 2x2x2x7, each the sum of 4x4x3 products

    closed = jax.make_jaxpr(net)(jnp.zeros((3, 4)), jnp.zeros((5, 4, 4)), jnp.zeros((4, 4, 3, 7)))
    assert matrix_flops(closed.jaxpr) == 5 * 2 * 3 * 4 * 4 + 2 * (2 * 2 * 2 * 7) * (4 * 4 * 3)


def test_collectives_are_found_with_their_bytes_and_times():
    hlo = """
  %a.1 = (bf16[1,768,16]{1,2,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%x, %y), """ + (
        """channel_id=1, metadata={op_name="jit(epoch)/while/body/transpose/while/body/dot"}
  %g = u8[8,3]{1,0} all-gather-start(%z), dimensions={0}
  ROOT %t = f32[3]{0} fusion(%all-reduce.1, %g), kind=kLoop
"""
    )
    found = list(collectives(hlo, (1, 12)))
    assert [(c["kind"], c["bytes"], c["times"]) for c in found] == [
        ("all-reduce", 768 * 16 * 2 + 4, 12),
        ("all-gather", 24, 1),
    ]


def test_flops_of_a_shard_map_are_those_of_all_shards():
    auto = jax.sharding.AxisType.Auto
    mesh = jax.sharding.AbstractMesh((4, 2), ("trial", "data"), axis_types=(auto, auto))
    spec = jax.sharding.PartitionSpec("trial")
    product = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"trial"}
    )
    closed = jax.make_jaxpr(product)(jnp.zeros((4, 3, 5)), jnp.zeros((4, 5, 7)))
    assert matrix_flops(closed.jaxpr) == 4 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("first", [1, 3, 13])
@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (lambda size: 0.6 + 1.13 * size, 13),
        (lambda size: 0.4 + 4.2 * size, 3),
        (lambda size: 0.5 + 0.8 * size + 0.03 * size * size, 12),
        (lambda size: 1 + 0.9 * size if size < 10 else None, 9),
        (lambda size: 16.0 + size, 0),
    ],
    ids=["line", "steep line", "curve", "refusal", "nothing fits"],
)
def test_largest_that_fits_is_found_from_any_start(first, gib, expected):
    assert largest(gib, first, 1, constant=0.32)["largest"] == expected


def test_what_was_compiled_for_v5e_holds():
    """One trial a chip sends nothing; a chip holds one trial as it is, and six with remat=block."""
    results = json.loads(STORED.read_text())["results"]
    for chips in (8, 16):
        (step,) = (r for r in results if r.get("mesh") == {"trial": chips, "data": 1})
        assert (step["trials"], step["batch"], step["remat"]) == (chips, 64, "none")
        assert step["collectives"] == []
        assert step["gib_per_chip"]["total"] < CHIP_GIB
    most = {r["remat"]: r["largest"] for r in results if r["program"] == "trials on a chip"}
    assert most["none"] >= 1
    assert most["block"] >= 6


def test_stored_rows_are_gone_on_with_under_the_same_compiler_only(tmp_path):
    stored = json.loads(STORED.read_text())
    record = {"target": stored["target"], "settings": stored["settings"]}
    record["environment"] = {k: stored["environment"][k] for k in ("jax", "jaxlib", "libtpu")}
    rows = known_rows(STORED, record)
    assert len(rows) == len(stored["results"])
    for row, before in zip(rows, stored["results"], strict=True):
        assert row["versions"]["pillow"]
        assert {**before, "versions": row["versions"]} == row
    assert known_rows(tmp_path / "none.json", record) == []
    other = {**record, "environment": {**record["environment"], "libtpu": "0"}}
    with pytest.raises(UserError, match="environment is .* Choose another file"):
        known_rows(STORED, other)
    with pytest.raises(UserError, match="settings is "):
        known_rows(STORED, {**record, "settings": {}})


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install 'jax[tpu]'; make tpu-compile)",
)
def test_compiles_for_v5e_8(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "--programs"]
    parts = ["trials", "split", "evaluation"]
    subprocess.run([*command, *parts, "--out", out], cwd=ROOT, check=True, timeout=1200)
    results = json.loads(out.read_text())["results"]
    assert all(r["gib_per_chip"]["total"] < CHIP_GIB for r in results)

    # One trial a chip: no chip speaks to another.
    stacks = [r for r in results if r["program"] == "training step" and r["trials"] > 1]
    assert [r["mesh"] for r in stacks] == [{"trial": n, "data": 1} for n in (8, 16)]
    assert all(r["collectives"] == [] for r in stacks)

    # One trial over all: sums of gradients, and nothing of the size of the images or of the model.
    (split,) = (r for r in results if r["program"] == "training step" and r["trials"] == 1)
    assert split["mesh"] == {"trial": 1, "data": 8}
    assert {c["kind"] for c in split["collectives"]} == {"all-reduce"}
    assert sum(c["times"] * c["bytes"] for c in split["collectives"]) < 10e6

    evaluations = [r for r in results if r["program"] in ("merging", "prediction")]
    assert len(evaluations) == 4
    assert all(r["collectives"] == [] for r in evaluations)

    # No d x d gradient of the frozen kernels, and eight trials are eight times one.
    step, forward = split["matrix_flops_all_chips"], evaluations[1]["matrix_flops_all_chips"]
    assert evaluations[1]["program"] == "prediction"
    assert (step / 64) / (forward / 256) < 2.2
    assert stacks[0]["matrix_flops_all_chips"] == pytest.approx(8 * step, rel=1e-3)
