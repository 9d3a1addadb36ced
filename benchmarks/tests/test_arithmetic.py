"""The programs' own arithmetic, and that the docs say what the stored results say."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, network, pages, readme
from benchmarks.accuracy import cells, comparison, numerics, numerics_accuracy, quickstart
from benchmarks.accuracy.emulation import emulate
from benchmarks.devices import check_device, tpu_compile, tpu_counts
from benchmarks.plots import plot_compare
from benchmarks.robustness import fuzz
from benchmarks.robustness.fuzz_target import Target
from benchmarks.speed import ceiling, evaluate, step
from fact_jax import FacTTT, UserError, ViT, ViTConfig, merge
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.result import Result

ROOT = Path(__file__).parents[2]
TPU = ROOT / "benchmarks/results/tpu_compile.json"


def run(monkeypatch, main, path, *arguments):
    """The JSON that a program's main writes."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--out", str(path)])
    main()
    return json.loads(path.read_text())


# Pages


def test_the_readme_says_the_stored_results(monkeypatch):
    """Each program and each stored result has a row, whose figures are those of the JSON."""
    monkeypatch.chdir(ROOT)
    page = readme.PAGE.read_text()
    assert page == readme.with_results(page.replace("0.87 of", "0.78 of"))
    rows = [match[2] for match in readme.ROW.finditer(page)]
    assert sorted(rows) == sorted(readme.RESULT)
    assert set(rows) == {path.name for path in readme.RESULTS.glob("*.json")}
    programs = re.findall(r"^\| \[(\w+)\]\((.*?)\).*?`python -m benchmarks\.(\w+)", page, re.M)
    assert len(programs) == 28
    for name, path, command in programs:
        assert name == command
        assert (readme.PAGE.parent / path).stem == name
        assert (readme.PAGE.parent / path).exists()


@pytest.mark.parametrize("page", pages.TABLES, ids=str)
def test_the_docs_say_the_stored_results(monkeypatch, page):
    """Also where the first row of each table is lost."""
    monkeypatch.chdir(ROOT)
    text, tables = page.read_text(), pages.tables(page)
    without = re.sub(r"(<!-- \w+ -->\n(?:\|.*\n){2})\|.*\n", r"\1", text)
    assert (without == text) is not any(tables.values())
    assert text == common.with_tables(without, tables)


def test_the_tables_of_all_methods_are_those_of_the_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    page, tables = comparison.PAGE.read_text(), comparison.tables()
    assert page == common.with_tables(page.replace("| LoRA | ", "| LoRA | 1"), tables)
    for table in tables.values():
        assert len(table.splitlines()) == 2 + len(plot_compare.NAMES)
    with pytest.raises(SystemExit, match="0 marks <!-- x -->"):
        common.with_tables(page, {"x": ""})


def test_a_method_without_one_of_the_seeds_has_no_row():
    cells = [{"method": "lora", "task": "digits", "seed": s, "accuracy": 90.0 + s} for s in (0, 1)]
    with pytest.raises(SystemExit, match="lora.*digits.*2"):
        comparison.accuracy(cells, ("digits",))


# Accuracy


def result(method, accuracy):
    return Result(f"digits-{method}-seed0", method, "digits", 0, accuracy, num_test=400)


def test_differences_are_in_standard_errors_of_the_difference():
    linear, fact = quickstart.compare(
        [result("linear", a) for a in (79.0, 80.0, 81.0)]
        + [result("fact_tt", a) for a in (90.0, 90.0, 90.0)]
    )
    assert (linear["mean"], linear["error"]) == (80.0, pytest.approx(3**-0.5))
    assert "difference" not in linear
    assert fact["difference"] == 10.0
    assert fact["ratio_seeds"] == pytest.approx(10 * math.sqrt(3))
    # 400 test images at 80 % and 90 %: 2 and 1.5 points of sampling error.
    both = math.sqrt(1 / 3 + 2.0**2 + 1.5**2)
    assert fact["ratio_seeds_and_sampling"] == pytest.approx(10 / both)
    rows = quickstart.compare([result("linear", 80.0), result("fact_tt", 90.0)])
    assert all(row["error"] is None and "difference" not in row for row in rows)  # one seed


def cells_of(seed, accuracy, search=None, **settings):
    usual = {"weights_sha256": "a", "epochs": 5, "image_size": 42, **settings}
    more = {
        "learning_rate": 0.1,
        "grid_size": 3,
        "num_factors": 10 + seed,
        "factor_file_bytes": 100,
        "seconds": {"cell": 2.0},
        "environment": {"commit": f"of seed {seed}"},
    }
    return [
        Result(
            *(f"{task}-noah-seed{seed}", "noah", task, seed, accuracy),
            search=search,
            settings=usual,
            **more,
        )
        for task in ("digits", "location")
    ]


def test_seeds_of_a_later_run_are_added_to_a_record(tmp_path):
    path, search = tmp_path / "r.json", {"best": [[1]], "history": [{"tried": 4}, {"tried": 7}]}
    cells.write(path, "first", cells_of(0, 80.0))
    cells.write(path, "second", cells_of(2, 86.0, search) + cells_of(1, 1.0))
    record = cells.write(path, "third", cells_of(1, 80.0))  # in the place of its former self
    assert record == json.loads(path.read_text())
    assert record["commands"] == ["first", "second", "third"]
    assert record["seconds"] == 16
    digits, location = record["rows"]
    assert (digits["mean"], digits["error"], digits["seeds"]) == (82.0, pytest.approx(2.0), 3)
    assert (digits["num_factors"], location["task"]) == (11, "location")
    found = [(c["seed"], c["accuracy"], c.get("architectures_tried")) for c in record["cells"]]
    assert found[::2] == [(0, 80.0, None), (1, 80.0, None), (2, 86.0, 7)]
    commits = [record["environments"][c["environment"]]["commit"] for c in record["cells"]]
    assert commits[::2] == ["of seed 0", "of seed 1", "of seed 2"]
    before = path.read_text()
    with pytest.raises(SystemExit, match=r"'epochs': 5.*'epochs': 6.*Choose another file"):
        cells.write(path, "other settings", cells_of(1, 80.0, epochs=6))
    assert path.read_text() == before


# Numerics


def rounded(x, bits):
    """Rounds to `bits` bits after the leading one, ties to even, in NumPy."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


@pytest.mark.parametrize(("mode", "bits"), [("bf16", 7), ("tf32", 10)])
def test_emulated_products_round_their_operands_forward_and_backward(mode, bits):
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=s).astype("f4") for s in ((5, 6), (6, 4), (5, 4)))

    def f(x, w):
        y, pullback = jax.vjp(lambda x, w: x @ w, x, w)
        return y, *pullback(jnp.asarray(g))

    y, by_x, by_w = jax.jit(emulate(f, mode))(x, w)
    xr, wr, gr = (rounded(v, bits) for v in (x, w, g))
    for actual, expected in ((y, xr @ wr), (by_x, gr @ wr.T), (by_w, xr.T @ gr)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(y - x @ w).max() > 1e-4


def test_three_passes_of_bfloat16_are_nearly_float32():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype("f4") for s in ((50, 60), (60, 40)))
    exact = x.astype("f8") @ w

    def error(mode):
        y = jax.jit(emulate(jnp.matmul, mode))(x, w)
        return np.linalg.norm(y - exact) / np.linalg.norm(exact)

    assert error("bf16_x3") < 2e-5 < 2e-4 < error("tf32") < 1e-3 < error("bf16") < 1e-2


HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
    """Precisions of all matrix products, and the number of roundings to bfloat16."""
    precisions, roundings = [], 0
    for equation in jaxpr.eqns:
        name, precision = equation.primitive.name, equation.params.get("precision")
        if name in ("dot_general", "conv_general_dilated", "factor_product"):
            precisions.append(HIGHEST if precision == "highest" else precision)
        # Rematerialisation has such equations of its own, of all 23 bits.
        roundings += equation.params.get("mantissa_bits") == 7
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            more, others = products(inner)
            precisions, roundings = precisions + more, roundings + others
    return precisions, roundings


SMALL = ViTConfig(width=24, depth=3, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)


def test_emulation_reaches_every_default_product_of_a_training_epoch():
    program, arguments = network.training(ViT(SMALL), FacTTT(4), 4, rate=0.1)
    emulated, roundings = products(jax.make_jaxpr(emulate(program, "bf16"))(*arguments).jaxpr)
    assert set(emulated) == {HIGHEST}
    plain, none = products(jax.make_jaxpr(program)(*arguments).jaxpr)
    assert roundings == 2 * sum(p != HIGHEST for p in plain) > none == 0


def test_increments_have_the_ratio_asked_for():
    images, labels = numerics.fashion(3, 16)
    assert images.shape == (3, 16, 16, 3)
    base = init_base(SMALL, jax.random.key(0))
    case, ratio = numerics.Case("", ViT(SMALL), base, images, labels), 2.0**-8
    adaptation = numerics.METHOD.adaptation(numerics.trainable_for(case, ratio)["factors"], SMALL)
    # By the merged weights, site by site.
    before, after = (b["Transformer"]["encoderblock"] for b in (base, merge(base, adaptation)))
    pairs = [(before[m][n]["kernel"], after[m][n]["kernel"]) for m, n in SITES.values()]
    squares = [(np.sum((a - b) ** 2), np.sum(b**2)) for b, a in pairs]
    change, size = np.sum(squares, axis=0)
    assert np.sqrt(change / size) == pytest.approx(ratio, rel=1e-3)
    assert numerics.relative_error({"a": np.array([3.0, 4.5])}, {"a": np.array([3.0, 4.0])}) == 0.1


def test_differences_pair_equal_tasks_and_seeds():
    accuracies = {("a", 0): (90.0, 91.0), ("a", 1): (80.0, 83.0), ("b", 0): (10.0, 10.0)}
    usual = {"variant": "v", "evaluated": "e", "merged": True, "changed": 1.0}
    rows = [
        {**usual, "task": task, "seed": seed, "trained": trained, "accuracy": accuracy}
        for (task, seed), pair in accuracies.items()
        for trained, accuracy in zip(("float32", "other"), pair, strict=True)
    ]
    first, second = numerics_accuracy.summary(rows)
    assert (first["difference"], first["error"]) == (0.0, 0.0)
    assert second["accuracy"] == {"a": (87.0, 4.0), "b": (10.0, None)}
    assert second["difference"] == pytest.approx(4 / 3)
    assert second["error"] == pytest.approx(np.std([1, 3, 0], ddof=1) / 3**0.5)


# Speed


def test_what_a_system_has_measured_before_it_fails_is_kept(monkeypatch, tmp_path, capsys):
    """Every state is stored, with ratios and the workers' environment."""
    ours, torch, path = "ours: FacT-TT 16", "torch: FacT-TT 16", tmp_path / "step.json"
    environment = {"jax": "1", "device": "gpu"}
    measured = {ours: [3.0, "out of memory"], torch: [6.0, 4.0]}
    states, store = [], step.store

    def call(name, a, *more, **_):
        answer = "no count" if "--count" in more else measured[name].pop(0)
        if isinstance(answer, str):
            return {"error": answer}
        return {"seconds": [answer], "peak_bytes": 4, "environment": environment}

    def spy(*arguments):
        store(*arguments)
        states.append(json.loads(path.read_text()))

    monkeypatch.setattr(step, "call", call)
    monkeypatch.setattr(step, "store", spy)
    content = run(monkeypatch, step.main, path, "--rounds", "2", "--only", f"{ours};{torch}")
    assert content["systems"][ours]["seconds"] == [3.0]
    assert content["systems"][ours]["time_ratio"] == 0.75
    assert content["systems"][torch]["seconds"] == [6.0, 4.0]
    assert states[0]["environment"]["device"] == content["environment"]["device"] == "gpu"
    assert states[1]["systems"][ours]["time_ratio"] == 0.5
    out = capsys.readouterr().out
    assert f"{ours}: left out: out of memory" in out
    assert f"{ours}: FLOPs left out: no count" in out


def test_flops_are_counted_once_a_program_on_the_cpu(monkeypatch):
    flops = {"forward": 10.0, "ours: FacT-TT 16": 19.0, "ours: FacT-TT 16, remat=block": 26.0}
    names = [n for n in step.OURS if n.startswith("ours: FacT-TT 16") and "dropout" not in n]
    calls = []

    def call(name, a, *more, **environment):
        calls.append(name)
        assert environment == {"JAX_PLATFORMS": "cpu"}
        return {"flops": flops[name]} if name in flops else {"error": "x"}

    monkeypatch.setattr(step, "call", call)
    counted = step.count([*names, "torch: full"], SimpleNamespace(), step.Console(quiet=True))
    assert len(calls) == len(set(calls)) == 4
    plain, attention, block, cudnn = (counted[name] for name in names)
    assert plain == {"useful_flops": 19.0, "flops": 19.0, "flops_over_forward": 1.9}
    assert block == {"useful_flops": 19.0, "flops": 26.0, "flops_over_forward": 2.6}
    assert attention == cudnn == {"useful_flops": 19.0}


def test_the_pictures_are_decoded_as_a_sweep_decodes_them():
    files = evaluate.pictures(5)
    batches = list(evaluate.decoded(files, 32, 2, None))
    assert [x.shape for x in batches] == [(2, 32, 32, 3), (2, 32, 32, 3), (1, 32, 32, 3)]
    np.testing.assert_array_equal(batches[1][0], evaluate.decode(files[2], 32))
    assert len({x.tobytes() for batch in batches for x in batch}) == 5


def test_ceiling(monkeypatch, tmp_path):
    systems = {"ours": {"flops": 2e9, "useful_flops": 1e9, "seconds": [2.0, 1.0]}}
    stored = tmp_path / "step.json"
    stored.write_text(json.dumps({"systems": {**systems, "torch": {"seconds": [1.0]}}}))
    arguments = ("--size", "64", "--rounds", "1", "--step", str(stored))
    content = run(monkeypatch, ceiling.main, tmp_path / "ceiling.json", *arguments)
    assert content["shares"] == {"ours": pytest.approx(1e9 / content["flops_per_s"])}


# Devices


def test_a_device_that_is_far_off_or_fails_is_told(monkeypatch, tmp_path):
    def measure(a, device, case):
        if case.dropout and case.dtype == "bfloat16":
            raise RuntimeError("no such kernel")
        wrong = 0.01 if case.dtype == "bfloat16" else 0.0
        return {"logits": np.ones(3), "loss": np.ones(1), "gradients": np.ones(4) + 10 * wrong}

    monkeypatch.setattr(check_device, "measure", measure)
    monkeypatch.setattr(check_device, "RANKS", {"fact_tt": 4})
    path = tmp_path / "check.json"
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, check_device.main, path)
    assert error.value.code == 1
    rows = json.loads(path.read_text())["rows"]
    assert [r["passed"] for r in rows] == [True, False, True, False]
    assert rows[1]["errors"]["gradients"] == pytest.approx(0.1)
    assert rows[3]["failed"] == "RuntimeError: no such kernel"


def test_flops_count_every_turn_of_a_scan_and_all_shards():
    def net(x, kernels, filters):
        x = jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]  # 5 of 3x4 @ 4x4
        image = jnp.zeros((2, 8, 8, 3))
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            image, filters, (4, 4), "VALID", dimension_numbers=dimensions
        )
        return x, y  # y: 2x2x2x7, each the sum of 4x4x3 products

    closed = jax.make_jaxpr(net)(jnp.zeros((3, 4)), jnp.zeros((5, 4, 4)), jnp.zeros((4, 4, 3, 7)))
    expected = 5 * 2 * 3 * 4 * 4 + 2 * (2 * 2 * 2 * 7) * (4 * 4 * 3)
    assert tpu_counts.matrix_flops(closed.jaxpr) == expected

    auto = jax.sharding.AxisType.Auto
    mesh = jax.sharding.AbstractMesh((4, 2), ("trial", "data"), axis_types=(auto, auto))
    spec = jax.sharding.PartitionSpec("trial")
    product = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"trial"}
    )
    closed = jax.make_jaxpr(product)(jnp.zeros((4, 3, 5)), jnp.zeros((4, 5, 7)))
    assert tpu_counts.matrix_flops(closed.jaxpr) == 4 * 2 * 3 * 5 * 7


def test_collectives_are_found_with_their_bytes_and_times():
    hlo = """
  %a.1 = (bf16[1,768,16]{1,2,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%x, %y), """ + (
        """channel_id=1, metadata={op_name="jit(epoch)/while/body/transpose/while/body/dot"}
  %g = u8[8,3]{1,0} all-gather-start(%z), dimensions={0}
  ROOT %t = f32[3]{0} fusion(%all-reduce.1, %g), kind=kLoop
"""
    )
    found = list(tpu_counts.collectives(hlo, (1, 12)))
    assert [(c["kind"], c["bytes"], c["times"]) for c in found] == [
        ("all-reduce", 768 * 16 * 2 + 4, 12),
        ("all-gather", 24, 1),
    ]


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
    assert tpu_compile.largest(gib, first, 1, constant=0.32)["largest"] == expected


def test_what_was_compiled_for_v5e_holds():
    """One trial a chip sends nothing; a chip holds one trial as it is, and six with remat=block."""
    results = json.loads(TPU.read_text())["results"]
    for chips in (8, 16):
        (step,) = (r for r in results if r.get("mesh") == {"trial": chips, "data": 1})
        assert (step["trials"], step["batch"], step["remat"]) == (chips, 64, "none")
        assert step["collectives"] == []
        assert step["gib_per_chip"]["total"] < tpu_compile.CHIP_GIB
    most = {r["remat"]: r["largest"] for r in results if r["program"] == "trials on a chip"}
    assert most["none"] >= 1
    assert most["block"] >= 6


def test_stored_rows_are_gone_on_with_under_the_same_compiler_only(tmp_path):
    stored = json.loads(TPU.read_text())
    record = {"target": stored["target"], "settings": stored["settings"]}
    record["environment"] = {k: stored["environment"][k] for k in ("jax", "jaxlib", "libtpu")}
    rows = tpu_compile.known_rows(TPU, record)
    assert len(rows) == len(stored["results"])
    for row, before in zip(rows, stored["results"], strict=True):
        assert row["versions"]["pillow"]
        assert {**before, "versions": row["versions"]} == row
    assert tpu_compile.known_rows(tmp_path / "none.json", record) == []
    other = {**record, "environment": {**record["environment"], "libtpu": "0"}}
    with pytest.raises(UserError, match="environment is .* Choose another file"):
        tpu_compile.known_rows(TPU, other)
    with pytest.raises(UserError, match="settings is "):
        tpu_compile.known_rows(TPU, {**record, "settings": {}})


# Robustness


@pytest.mark.filterwarnings("ignore:some pictures have more than 8 bits")
@pytest.mark.parametrize(
    "name", ["npz", "safetensors", "torch", "results", "pictures", "cache", "csv"]
)
def test_sound_files_are_accepted_and_cases_are_made_again(tmp_path, name):
    target = fuzz.TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        path = tmp_path / f"a{target.suffix}"
        path.write_bytes(data)
        assert fuzz.attempt(target, path)["outcome"] == "accepted"
    cases = [fuzz.make(target, seeds, name, 0, case) for case in range(20)]
    assert cases == [fuzz.make(target, seeds, name, 0, case) for case in range(20)]
    assert len({*cases, *seeds}) > 15


def test_what_is_a_violation(tmp_path):
    def outcome(load):
        target = Target(".x", list, lambda rng, data: data, load)
        return fuzz.is_violation(fuzz.attempt(target, tmp_path / "a.x"))

    def refuse(path):
        raise UserError(f"{path} is damaged.")

    assert not outcome(lambda path: None)
    assert not outcome(refuse)
    assert outcome(lambda path: {}["key"])
    assert fuzz.is_violation({"outcome": "accepted", "seconds": 3.0, "bytes": 0})
    assert fuzz.is_violation({"outcome": "accepted", "seconds": 0.0, "bytes": 600 << 20})
