"""Every benchmark of performance runs from end to end, on a tiny network, and says what it must."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import (
    ceiling,
    evaluate,
    plot_performance,
    scaling,
    step,
    step_alternatives,
    sweep,
)
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


def test_step(monkeypatch, tmp_path, capsys):
    names = ("ours: FacT-TT 16", "ours: evaluation")
    content = run(
        monkeypatch, step.main, tmp_path / "step.json", *TINY, "--batch", "2", "--steps", "1",
        "--no_flops", "--only", ";".join((*names, "torch: full")),
    )  # fmt: skip
    assert set(content["systems"]) == set(names)
    assert "torch: full: left out: the peers are ViT-B/16" in capsys.readouterr().out
    for found in content["systems"].values():
        assert len(found["seconds"]) == 1
        assert found["images_per_s"] == pytest.approx(2 / found["seconds"][0])
        assert min(found["peak_bytes"], found["temporary_bytes"], found["compile_s"]) > 0
    plot_performance.draw_step(content, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_step_alternatives(monkeypatch, tmp_path):
    some = dict(list(step_alternatives.ALTERNATIVES.items())[:2])
    monkeypatch.setattr(step_alternatives, "ALTERNATIVES", some)
    shallow = get_variant("vit_mini").replace(depth=2)
    monkeypatch.setattr(step_alternatives, "get_variant", {"vit_mini": shallow}.get)
    content = run(
        monkeypatch, step_alternatives.main, tmp_path / "alternatives.json",
        "--variant", "vit_mini", "--batch", "2", "--rounds", "1",
    )  # fmt: skip
    ours, plain = content["alternatives"].values()
    assert ours["time_ratio"] == ours["flops_ratio"] == 1
    assert plain["flops_ratio"] > 1.2  # the gradients of d x d weights
    assert min(ours["temporary_bytes"], plain["time_ratio"]) > 0


def test_scaling(monkeypatch, tmp_path, capsys):
    content = run(
        monkeypatch, scaling.main, tmp_path / "scaling.json", *TINY, "--batch", "2",
        "--rank", "4", "--only", "split",
    )  # fmt: skip
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


def test_what_a_sweep_varies():
    assert scaling.values_of("images", 8) == [1, 2, 4, 8]
    assert scaling.values_of("images", 6) == [1, 2, 4, 6]
    assert scaling.values_of("images", 1) == [1]
    assert scaling.values_of("trials", 8) == scaling.values_of("devices", 8) == [1, 2, 4, 8]


def test_evaluate(monkeypatch, tmp_path):
    content = run(
        monkeypatch, evaluate.main, tmp_path / "evaluate.json", *TINY, "--images", "21",
        "--batch", "8",
    )  # fmt: skip
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


def test_missing_results_are_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.plot_performance", "--out", str(tmp_path)]
    command += ["--step", str(tmp_path / "a.json"), "--scaling", str(tmp_path / "b.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "performance_step.png: left out" in done.stdout
    assert "performance_scaling.png: left out" in done.stdout


def test_sweep(monkeypatch, tmp_path):
    content = run(
        monkeypatch, sweep.main, tmp_path / "sweep.json", "--variant", "vit_mini", "--image_size",
        "32", "--tasks", "dtd,svhn,kitti", "--epochs", "2", "--batch", "8", "--eval_batch", "16",
        "--train_limit", "16", "--test_fraction", "0.001",
    )  # fmt: skip
    assert content["compilations"] == {"epoch": 1, "merged": 1, "predict": 1}
    assert content["cells"] == 3
    assert content["train_steps"] == 3 * 2 * 2
    assert content["test_images"] == 2 + 26 + 1
    seconds = content["seconds"]
    assert all(value > 0 for value in seconds.values())
    parts = ("compile", "train", "evaluate", "other")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"])


def test_ceiling(monkeypatch, tmp_path):
    step = {"systems": {"ours": {"flops": 1e9, "seconds": [2.0, 1.0]}, "torch": {"seconds": [1.0]}}}
    (tmp_path / "step.json").write_text(json.dumps(step))
    content = run(
        monkeypatch, ceiling.main, tmp_path / "ceiling.json", "--size", "64", "--rounds", "1",
        "--step", str(tmp_path / "step.json"),
    )  # fmt: skip
    assert content["shares"] == {"ours": pytest.approx(1e9 / content["flops_per_s"])}
