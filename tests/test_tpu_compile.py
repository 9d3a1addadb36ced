"""The programs compile for a v5e-8, fit its memory, and the chips exchange gradients only."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_compile import CHIP_GIB, collectives, matrix_flops

ROOT = Path(__file__).parents[1]


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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install 'jax[tpu]'; make tpu-compile)",
)
def test_compiles_for_v5e_8(tmp_path):
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "--chips", "8"]
    subprocess.run([*command, "--out", tmp_path / "out.json"], cwd=ROOT, check=True, timeout=900)
    results = {r["program"]: r for r in json.loads((tmp_path / "out.json").read_text())["results"]}
    assert set(results) == {"training step", "merging", "prediction"}
    for result in results.values():
        assert result["chips"] == 8
        assert result["gib_per_chip"]["total"] < CHIP_GIB / 2

    # Sums of gradients, and nothing of the size of the images or of the model.
    exchanged = results["training step"]["collectives"]
    assert {c["kind"] for c in exchanged} == {"all-reduce"}
    assert sum(c["times"] * c["bytes"] for c in exchanged) < 10e6
    assert results["merging"]["collectives"] == results["prediction"]["collectives"] == []

    step, forward = (
        results[name]["matrix_flops_all_chips"] for name in ("training step", "prediction")
    )
    assert (step / 64) / (forward / 256) < 2.2  # no d x d gradient of the frozen kernels
