"""Every benchmark of performance runs from end to end, on a tiny network, and says what it must."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

import fact_jax
from benchmarks.devices import check_device, scaling
from benchmarks.plots import plot_performance
from benchmarks.speed import ceiling, evaluate, step, step_alternatives, sweep
from fact_jax import get_variant

TINY = ("--variant", "vit_mini", "--image_size", "32", "--rounds", "1")


def run(monkeypatch, main, path, *arguments):
    """The JSON that a benchmark's main writes; all its numbers are finite."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--out", str(path)])
    main()
    content = json.loads(path.read_text())
    assert content["environment"]["jax"]
    assert content["environment"]["device"]

    def numbers(tree):
        if isinstance(tree, dict | list):
            for value in tree.values() if isinstance(tree, dict) else tree:
                yield from numbers(value)
        elif isinstance(tree, float):
            yield tree

    assert all(math.isfinite(x) for x in numbers(content))
    return content


@pytest.mark.slow
def test_step(monkeypatch, tmp_path, capsys):
    names = ("ours: linear", "ours: evaluation")
    content = run(
        monkeypatch,
        step.main,
        tmp_path / "step.json",
        *TINY,
        "--batch",
        "2",
        "--steps",
        "1",
        "--only",
        ";".join((*names, "torch: full")),
    )
    assert set(content["systems"]) == set(names)
    assert "torch: full: left out: the peers are ViT-B/16" in capsys.readouterr().out
    for found in content["systems"].values():
        assert found["useful_flops"] == found["flops"] > 1e6
        assert 0.5 < found["flops_over_forward"] < 1
        assert len(found["seconds"]) == 1
        assert found["images_per_s"] == pytest.approx(2 / found["seconds"][0])
        assert min(found["peak_bytes"], found["temporary_bytes"], found["compile_s"]) > 0
    plot_performance.draw_step(content, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 10_000


def worked(monkeypatch, results):
    """Has step's workers answer from `results`, {name: a list of answers}; returns their calls."""
    calls = []

    def call(name, a, *more, **environment):
        calls.append((name, more, environment))
        if "--count" in more:
            return results.get("count", lambda name: {"error": "no count"})(name)
        return dict(results[name].pop(0))

    monkeypatch.setattr(step, "call", call)
    return calls


def answer(seconds):
    return {"seconds": [seconds], "peak_bytes": 4, "environment": {"jax": "1", "device": "gpu"}}


def test_what_a_system_has_measured_before_it_fails_is_kept(monkeypatch, tmp_path, capsys):
    """Every state is stored, with ratios and the workers' environment."""
    ours, torch, path = "ours: FacT-TT 16", "torch: FacT-TT 16", tmp_path / "step.json"
    seen = []
    error = {"error": "out of memory"}
    worked(monkeypatch, {ours: [answer(3.0), error], torch: [answer(6.0), answer(4.0)]})
    monkeypatch.setattr(
        step, "store", lambda *x, s=step.store: (s(*x), seen.append(path.read_text()))
    )
    content = run(
        monkeypatch, step.main, path, "--rounds", "3", "--only", f"{ours};{torch}", "--rounds", "2"
    )
    assert content["systems"][ours]["seconds"] == [3.0]
    assert content["systems"][ours]["time_ratio"] == 0.75
    assert content["systems"][torch]["seconds"] == [6.0, 4.0]
    assert content["environment"]["device"] == "gpu"
    first, second, *_ = map(json.loads, seen)
    assert first["environment"]["device"] == "gpu"
    assert second["systems"][ours]["time_ratio"] == 0.5
    out = capsys.readouterr().out
    assert f"{ours}: left out: out of memory" in out
    assert f"{ours}: FLOPs left out: no count" in out


def test_flops_are_counted_once_a_program_on_the_cpu(monkeypatch):
    known = {"forward": 10.0, "ours: FacT-TT 16": 19.0, "ours: FacT-TT 16, remat=block": 26.0}
    names = [n for n in step.OURS if n.startswith("ours: FacT-TT 16") and "dropout" not in n]
    count = lambda name: {"flops": known[name]} if name in known else {"error": "x"}  # noqa: E731
    calls = worked(monkeypatch, {"count": count})
    a = step.argparse.Namespace()
    counted = step.count([*names, "torch: full"], a, step.Console(quiet=True))
    assert len(calls) == len({name for name, *_ in calls}) == 4
    assert all(environment == {"JAX_PLATFORMS": "cpu"} for *_, environment in calls)
    plain, attention, block, cudnn = (counted[name] for name in names)
    assert plain == {"useful_flops": 19.0, "flops": 19.0, "flops_over_forward": 1.9}
    assert block == {"useful_flops": 19.0, "flops": 26.0, "flops_over_forward": 2.6}
    assert attention == cudnn == {"useful_flops": 19.0}
    assert set(map(step.plain, step.OURS)) <= set(step.OURS)


@pytest.mark.slow
def test_step_alternatives(monkeypatch, tmp_path):
    names = (
        "ours",
        "plain autodiff of the merged product",
        "the factors' gradients as autodiff writes them",
        step_alternatives.UNROLLED,
    )
    some = {name: step_alternatives.ALTERNATIVES[name] for name in names}
    monkeypatch.setattr(step_alternatives, "ALTERNATIVES", some)
    shallow = get_variant("vit_mini").replace(depth=4)
    monkeypatch.setattr(step_alternatives, "get_variant", {"vit_mini": shallow}.get)
    content = run(
        monkeypatch,
        step_alternatives.main,
        tmp_path / "alternatives.json",
        "--variant",
        "vit_mini",
        "--batch",
        "2",
        "--rounds",
        "1",
    )
    ours, plain, factors, unrolled = content["alternatives"].values()
    assert unrolled["flops_ratio"] == pytest.approx(1, abs=1e-6)
    assert unrolled["temporary_bytes"] != ours["temporary_bytes"]
    assert factors["time_ratio"] > 0
    assert factors["flops_ratio"] == pytest.approx(1, abs=0.01)
    assert ours["time_ratio"] == ours["flops_ratio"] == 1
    assert plain["flops_ratio"] > 1.2  # the gradients of d x d weights
    assert min(ours["temporary_bytes"], plain["time_ratio"]) > 0


@pytest.mark.slow
def test_scaling(monkeypatch, tmp_path, capsys):
    content = run(
        monkeypatch,
        scaling.main,
        tmp_path / "scaling.json",
        *TINY,
        "--batch",
        "2",
        "--rank",
        "4",
        "--only",
        "split",
    )
    assert list(content["sweeps"]) == ["split"]
    split = content["sweeps"]["split"]
    assert [row["value"] for row in split["rows"]] == [1, 2]
    assert split["rows"][0]["time_ratio"] == split["rows"][0]["memory_ratio"] == 1
    for row in split["rows"]:
        assert row["images"] == 2
        assert row["best_seconds"] == min(row["seconds"]) > 0
        assert row["images_per_s"] == pytest.approx(2 / row["best_seconds"])
        assert min(row["temporary_bytes"], row["compile_s"], row["memory_ratio"]) > 0
    assert split["shared_cores"]
    assert len(split["left_out"]) == 2  # a batch of 2 on 4 and on 8 devices
    assert "they share" in capsys.readouterr().out
    content["sweeps"]["rank"] = {**split, "title": "rank", "shared_cores": None}
    plot_performance.draw_scaling(content, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "values", "images"),
    [
        ("rank", (1, 16), (2, 2)),
        ("images", (1, 2), (1, 2)),
        ("depth", (3, 6), (2, 2)),
        ("trials", (1, 2), (2, 4)),
    ],
)
def test_scaling_makes_a_step_of_every_value(monkeypatch, variable, values, images):
    small = get_variant("vit_mini").replace(width=32, mlp_dim=64, depth=3)
    monkeypatch.setattr(fact_jax, "get_variant", lambda name: small)
    a = step.argparse.Namespace(
        variant="small",
        image_size=16,
        dtype="float32",
        remat="none",
        attention="xla",
        batch=2,
        rank=4,
        rate=None,
    )
    found = []
    for value in values:
        train, row = scaling.prepare(a, variable, value)
        train()
        train()  # its own arguments were donated
        found.append(row)
    assert [row["images"] for row in found] == list(images)
    assert found[0]["temporary_bytes"] < found[1]["temporary_bytes"]
    assert scaling.prepare(a, "devices", len(jax.devices()) + 1) is None
    assert scaling.prepare(a, "split", 4) is None  # a batch of 2


def test_what_a_sweep_varies():
    assert scaling.values_of("images", 8) == [1, 2, 4, 8]
    assert scaling.values_of("images", 6) == [1, 2, 4, 6]
    assert scaling.values_of("images", 1) == [1]
    assert scaling.values_of("trials", 8) == scaling.values_of("devices", 8) == [1, 2, 4, 8]


@pytest.mark.slow
def test_evaluate(monkeypatch, tmp_path):
    content = run(
        monkeypatch,
        evaluate.main,
        tmp_path / "evaluate.json",
        *TINY,
        "--images",
        "21",
        "--batch",
        "8",
    )
    stages = content["stages"]
    assert {"decode alone, 1 thread", "predict alone", "from memory", "streamed"} <= set(stages)
    for stage in stages.values():
        assert stage["images_per_s"] == pytest.approx(21 / min(stage["seconds"]))
    ratio = stages["streamed"]["images_per_s"] / stages["predict alone"]["images_per_s"]
    assert content["wait_share"] == pytest.approx(1 - ratio)
    assert 0 < content["idle_share"] < 1
    assert 20_000 < content["jpeg_bytes"] < 200_000


def test_the_pictures_are_decoded_as_a_sweep_decodes_them():
    files = evaluate.pictures(5)
    batches = list(evaluate.decoded(files, 32, 2, None))
    assert [x.shape for x in batches] == [(2, 32, 32, 3), (2, 32, 32, 3), (1, 32, 32, 3)]
    np.testing.assert_array_equal(batches[1][0], evaluate.decode(files[2], 32))
    assert len({x.tobytes() for batch in batches for x in batch}) == 5


def test_idle_time_is_what_lies_between_predictions():
    """Two predictions, from 1 to 3 and from 4 to 6, of a run that began at 0."""
    watch = evaluate.Watch()
    watch._starts = [1.0, 4.0]
    watch._ends = [watch._pool.submit(lambda t=t: t) for t in (3.0, 6.0)]
    assert watch.idle(0.0) == 2.0
    assert watch.idle(10.0) == 0.0


def test_missing_results_are_named(monkeypatch, tmp_path, capsys):
    files = ["--step", str(tmp_path / "a.json"), "--scaling", str(tmp_path / "b.json")]
    monkeypatch.setattr(sys, "argv", ["plot_performance", "--out", str(tmp_path), *files])
    plot_performance.main()
    out = capsys.readouterr().out
    assert "performance_step.png: left out" in out
    assert "performance_scaling.png: left out" in out


SHORT_SWEEP = (
    *("--variant=vit_mini", "--image_size=32", "--tasks=dtd,svhn,kitti", "--epochs=2"),
    *("--batch=8", "--eval_batch=16", "--train_limit=16", "--test_fraction=0.001"),
)


@pytest.mark.slow
def test_sweep(monkeypatch, tmp_path):
    content = run(monkeypatch, sweep.main, tmp_path / "sweep.json", *SHORT_SWEEP)
    assert content["compilations"] == {"epoch": 1, "merged": 1, "predict": 1}
    assert content["cells"] == 3
    assert content["train_steps"] == 3 * 2 * 2
    assert content["test_images"] == 2 + 26 + 1
    seconds = content["seconds"]
    assert all(value > 0 for value in seconds.values())
    parts = ("compile", "train", "evaluate", "other")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"])
    assert content["settings"]["candidate_scales"] == 1
    name = "estimated_seconds_of_100_epochs_and_whole_test_sets"
    assert content[name] == pytest.approx(
        seconds["compile"] + 50 * seconds["train"] + 1000 * seconds["evaluate"] + seconds["other"]
    )


@pytest.mark.slow
def test_a_sweep_that_is_told_to_end_estimates_from_what_it_finished(monkeypatch, tmp_path):
    real = sweep.run_sweep

    def stopped(config, workdir, console):
        real(config, workdir, console, only=["dtd-fact_tt-seed42", "kitti-fact_tt-seed42"])
        raise sweep.stopping.Terminated

    monkeypatch.setattr(sweep, "run_sweep", stopped)
    content = run(monkeypatch, sweep.main, tmp_path / "sweep.json", *SHORT_SWEEP)
    assert (content["cells"], content["cells_planned"]) == (2, 3)
    seconds = content["seconds"]
    assert content["estimated_seconds_of_100_epochs_and_whole_test_sets"] == pytest.approx(
        seconds["compile"] + 1.5 * (50 * seconds["train"] + 1000 * seconds["evaluate"])
    )
    monkeypatch.setattr(sweep, "run_sweep", mock.Mock(side_effect=sweep.stopping.Terminated))
    with pytest.raises(SystemExit, match="before one of 19 cells"):
        run(
            monkeypatch,
            sweep.main,
            tmp_path / "none.json",
            "--variant",
            "vit_mini",
            "--image_size",
            "32",
        )


def test_ceiling(monkeypatch, tmp_path):
    step = tmp_path / "step.json"
    systems = {"ours": {"flops": 2e9, "useful_flops": 1e9, "seconds": [2.0, 1.0]}}
    arguments = ("--size", "64", "--rounds", "1", "--step", str(step))
    step.write_text(json.dumps({"systems": {**systems, "torch": {"seconds": [1.0]}}}))
    content = run(monkeypatch, ceiling.main, tmp_path / "ceiling.json", *arguments)
    assert content["shares"] == {"ours": pytest.approx(1e9 / content["flops_per_s"])}
    step.write_text(json.dumps({"systems": {"torch": {"seconds": [1.0]}}}))
    with pytest.raises(SystemExit, match="no system with useful_flops"):
        run(monkeypatch, ceiling.main, tmp_path / "ceiling.json", *arguments)


@pytest.mark.slow
def test_the_check_of_a_device(monkeypatch, tmp_path):
    """float32 on a CPU is the reference itself, bfloat16 is near it, and a bound is a bound."""
    small = get_variant("vit_mini").replace(width=32, mlp_dim=64)
    monkeypatch.setattr(check_device, "get_variant", lambda name: small)
    monkeypatch.setattr(check_device, "RANKS", {"fact_tt": 4})
    arguments = ("--image_size", "16", "--depth", "2", "--batch", "2")
    path = tmp_path / "check.json"
    content = run(monkeypatch, check_device.main, path, *arguments)
    assert [r["dtype"] for r in content["rows"]] == 2 * ["float32", "bfloat16"]
    for row in content["rows"]:
        assert row["passed"]
        assert set(row["errors"]) == {"loss", "gradients"} | (
            {"logits"} - {row["dropout"] * "logits"}
        )
        exact = row["dtype"] == "float32"
        assert max(row["errors"].values()) < (1e-7 if exact else 0.05)
        assert exact or row["errors"]["gradients"] > 1e-4

    def other(a, device, name, noise, dtype, attention):
        if noise and dtype == "bfloat16":
            raise RuntimeError("no such kernel")
        wrong = 0.01 if dtype == "bfloat16" else 0.0
        return {"logits": np.ones(3), "loss": np.ones(1), "gradients": np.ones(4) + 10 * wrong}

    monkeypatch.setattr(check_device, "measure", other)
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, check_device.main, path, *arguments)
    assert error.value.code == 1
    rows = json.loads(path.read_text())["rows"]
    assert [r["passed"] for r in rows] == [True, False, True, False]
    assert rows[1]["errors"]["gradients"] == pytest.approx(0.1)
    assert rows[3]["failed"] == "RuntimeError: no such kernel"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ((), ("check_device", "step", "ceiling", "scaling", "evaluate", "sweep_short")),
        (("sweep", "--remat", "block"), ("sweep",)),
    ],
)
def test_all_of_it_in_one_call(tmp_path, mode, parts):
    """benchmarks/gpu.sh on the CPU, with a tiny network."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["bash", root / "benchmarks/gpu.sh", tmp_path, *mode],
        capture_output=True,
        text=True,
        env=os.environ | {"SMOKE": "1", "PATH": path, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {name if name == "check_device" else f"{name}_gpu" for name in parts}
    assert {p.stem for p in tmp_path.glob("*.json")} == names
    assert all(json.loads(p.read_text())["environment"] for p in tmp_path.glob("*.json"))
