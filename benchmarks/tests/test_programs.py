"""Every program runs to its end with its smallest settings, and says what it must."""

import importlib
import importlib.util
import json
import math
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import pytest

from benchmarks import network
from benchmarks.devices import check_device, scaling, tpu_compile
from benchmarks.plots import plot_dictionary, plot_hundred_tasks, plot_performance, plot_rounding
from benchmarks.speed import step_alternatives, sweep
from fact_jax import get_variant

ROOT = Path(__file__).parents[2]
TINY = "--variant vit_mini --image_size 32 --rounds 1"
SWEEP = (
    "--variant vit_mini --image_size 32 --tasks dtd,svhn,kitti --epochs 2 --batch 8 "
    "--eval_batch 16 --train_limit 16 --test_fraction 0.001"
)


def numbers(tree):
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(value)
    elif isinstance(tree, float):
        yield tree


def environments(content):
    """Where the numbers were measured: of all, or of each part."""
    if "environments" in content:
        return content["environments"]
    if "environment" in content:
        return [content["environment"]]
    return [part["environment"] for part in content.values()]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a program's main; returns the JSON that it writes, whose numbers are all finite."""

    def run(name, arguments, out="out.json"):
        words = [name, *shlex.split(arguments), "--out", str(tmp_path / out)]
        monkeypatch.setattr(sys, "argv", words)
        importlib.import_module(f"benchmarks.{name}").main()
        content = json.loads((tmp_path / out).read_text())
        assert all(e["jax"] and e["device"] for e in environments(content))
        assert all(math.isfinite(x) for x in numbers(content))
        return content

    return run


# The names of the time when all programs stood in one folder.
COMMANDS = (
    *(
        "bank",
        "bank_memory",
        "ceiling",
        "check_device",
        "compare",
        "comparison",
        "consistency",
        "dictionary",
        "evaluate",
        "exchange",
        "faults",
        "fewshot",
        "finish_rate",
        "fuzz",
        "hundred_tasks",
        "leaderboard",
        "pairs",
        "small_files",
    ),
    *(
        "numerics",
        "offline_val",
        "plot_compare",
        "plot_performance",
        "plot_quickstart",
    ),
    *(
        "quickstart",
        "report",
        "scaling",
        "serve",
        "step",
        "step_alternatives",
        "step_worker",
        "study",
        "study_page",
        "suite",
        "sweep",
    ),
    "tpu_compile",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_name_no_folder(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def logits_are_close(content, out, tmp_path):
    """The formats whose packages are here are compared, and the others are named."""
    assert {r["format"] for r in content["rows"]} | content["left_out"].keys() == {
        *("peft", "hf", "timm", "stablehlo", "onnx", "onnx_factors")
    }
    assert content["moved"] > 0.1
    assert all(row["difference"] < 1e-4 for row in content["rows"])


def dictionaries_are_compared(content, out, tmp_path):
    rows = content["offline"]["rows"]
    assert {r["way"] for r in rows} == {"own", "learnt", "post hoc", "random"}
    for row in rows:
        if row["way"] == "own":
            continue
        assert row["numbers"] == 6 * 12 * 2 * 2
        assert row["accuracies"].keys() == {"digits", "fashion"}
        assert 600 < row["small_bytes"] < 2000
    plot_dictionary.draw(content, tmp_path / "dictionary.png")
    assert (tmp_path / "dictionary.png").stat().st_size > 10_000


def step_measures(content, out, tmp_path):
    assert set(content["systems"]) == {"ours: linear", "ours: evaluation"}
    assert "torch: full: left out: the peers are ViT-B/16" in out
    for system in content["systems"].values():
        assert system["useful_flops"] == system["flops"] > 1e6
        assert system["images_per_s"] == pytest.approx(2 / system["seconds"][0])
        assert min(system["peak_bytes"], system["temporary_bytes"], system["compile_s"]) > 0
    plot_performance.draw_step(content, tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 10_000


def scaling_measures(content, out, tmp_path):
    split = content["sweeps"]["split"]
    assert [row["value"] for row in split["rows"]] == [1, 2]
    assert split["rows"][0]["time_ratio"] == split["rows"][0]["memory_ratio"] == 1
    for row in split["rows"]:
        assert row["images_per_s"] == pytest.approx(2 / min(row["seconds"]))
        assert min(row["temporary_bytes"], row["compile_s"], row["memory_ratio"]) > 0
    assert len(split["left_out"]) == 2  # a batch of 2 on 4 and on 8 devices
    assert "they share" in out
    content["sweeps"]["rank"] = {**split, "title": "rank", "shared_cores": None}
    plot_performance.draw_scaling(content, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def evaluation_waits(content, out, tmp_path):
    for stage in content["stages"].values():
        assert stage["images_per_s"] == pytest.approx(21 / min(stage["seconds"]))
    rates = {name: stage["images_per_s"] for name, stage in content["stages"].items()}
    assert content["wait_share"] == pytest.approx(1 - rates["streamed"] / rates["predict alone"])
    assert 0 < content["idle_share"] < 1


def sweep_takes_its_parts(content, out, tmp_path):
    assert content["compilations"] == {"epoch": 1, "merged": 1, "predict": 1}
    assert (content["cells"], content["train_steps"]) == (3, 3 * 2 * 2)
    seconds = content["seconds"]
    parts = ("compile", "train", "evaluate", "other")
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["wall"])
    name = "estimated_seconds_of_100_epochs_and_whole_test_sets"
    assert content[name] == pytest.approx(
        seconds["compile"] + 50 * seconds["train"] + 1000 * seconds["evaluate"] + seconds["other"]
    )


def choices_cost(content, out, tmp_path):
    ours, plain, factors, *_, unrolled = (
        content["alternatives"][name]
        for name in (
            "ours",
            "plain autodiff of the merged product",
            "the factors' gradients as autodiff writes them",
            step_alternatives.UNROLLED,
        )
    )
    assert ours["time_ratio"] == ours["flops_ratio"] == 1
    assert plain["flops_ratio"] > 1.2  # the gradients of d x d weights
    assert factors["flops_ratio"] == pytest.approx(1, abs=0.01)
    assert unrolled["flops_ratio"] == pytest.approx(1, abs=1e-6)
    assert unrolled["temporary_bytes"] != ours["temporary_bytes"]


def report_is_measured(content, out, tmp_path):
    assert content["results"] == "synthetic: 15 cells"
    assert 50_000 < content["page_bytes"] < content["folder_bytes"]
    assert "opens in" in out


def the_bank_is_measured(content, out, tmp_path):
    systems = content["systems"]
    assert systems["Predictor, merged FacT-TT 16"]["ratio_to_merged"] == 1
    assert all(len(row["seconds"]) == 1 for row in systems.values())
    few, many = (min(systems[f"bank, FacT-TT 4, {n} tasks"]["seconds"]) for n in (4, 300))
    assert content["stored_ratio"] == pytest.approx(many / few)
    assert set(content["add_seconds"]) == {"4", "300"}
    numbers_of_a_task = 2 * 128 * 4 + 6 * 12 * 16
    memory = content["memory"]
    assert memory["float32"]["factor_bytes"] == 300 * 4 * (numbers_of_a_task + 1)  # and a scale
    assert memory["float32"]["factor_bytes"] > 3 * memory["int8"]["factor_bytes"]
    assert content["errors"]["float32"]["LoRA 8"] < 1e-5 < content["errors"]["int8"]["LoRA 8"]
    (method,) = content["methods"]
    assert method["method"] == "fact_tt"
    blocks = 4 * 6 * 12 * 128**2  # bytes of vit_mini's kernels, which FacT-TT changes
    assert blocks < method["merged_bytes"] < 1.1 * blocks
    assert "MB of the process" in out


def methods_are_compared(content, out, tmp_path):
    """Two seeds of each method."""
    results = [json.loads(p.read_text()) for p in tmp_path.glob("work/results/*.json")]
    for row in content["rows"]:
        cells = [r for r in results if (r["method"], r["task"]) == (row["method"], row["task"])]
        assert row["mean"] == pytest.approx(sum(r["accuracy"] for r in cells) / 2)
    (command,) = content["commands"]
    assert "--tasks digits" in command


def study_goes_on(content, out, tmp_path):
    """The second seed has the rate that the first has chosen."""
    first, second = content["cells"]
    assert (first["grid_size"], second["grid_size"]) == (3, 1)
    assert first["learning_rate"] == second["learning_rate"]
    assert "main: 2 of the 2 cells asked for" in out


def few_shots_are_compared(content, out, tmp_path):
    methods_are_compared(content, out, tmp_path)
    assert [row["task"] for row in content["rows"]] == ["digits_1shot"]
    assert (tmp_path / "work" / "fewshot.png").exists()


def rows_have(**expected):
    """A check that a column of the rows has these values."""
    ((column, values),) = expected.items()

    def check(content, out, tmp_path):
        assert {row[column] for row in content["rows"]} == set(values)

    return check


def files_are_refused(content, out, tmp_path):
    assert [target["cases"] for target in content["targets"].values()] == [20, 20]
    assert not any(target["violations"] for target in content["targets"].values())


def increments_are_measured(content, out, tmp_path):
    assert {row["case"] for row in content["increments"]} == {"vit_mini, 32 px"}


def rounding_costs(content, out, tmp_path):
    rows = {row["way"]: row for row in content["rows"]}
    trained, plain, weighted = (rows.pop(way) for way in ("trained", "plain", "weighted"))
    assert (trained["rank"], plain["rank"]) == (16, 4)
    assert plain["error"] <= plain["bound"]
    assert weighted["weighted_error"] < 1
    assert plain["bytes"] == weighted["bytes"] < trained["bytes"]
    assert list(rows) == ["plain, finished", "weighted, finished", "fresh"]
    assert {row["numbers"] for row in rows.values()} == {plain["numbers"]}
    means = {mean["way"]: mean for mean in content["means"]}
    lost = {way: mean["lost"]["mean"] for way, mean in means.items()}
    assert (lost["trained"], means["fresh"]["below_fresh"]["mean"]) == (0, 0)
    assert means["plain"]["below_fresh"]["mean"] == pytest.approx(lost["plain"] - lost["fresh"])
    plot_rounding.draw(content, tmp_path / "rounding.png")
    assert (tmp_path / "rounding.png").stat().st_size > 10_000


def server_withstands(content, out, tmp_path):
    assert content["checked_answers"] > 0
    assert (content["wrong"], content["opened_outside"]) == ([], [])
    assert content["at_the_end"]["exit_status"] == 0


def few_bits_lose(content, out, tmp_path):
    assert [row["how"] for row in content["rows"]] == ["rounded", "finished", "trained"]
    assert len({row["bytes"] for row in content["rows"]}) == 1
    assert content["float32"]["lost"] == 0


def many_tasks_are_used(content, out, tmp_path):
    """A pair of digits, the same pair of garments, and two places."""
    names = [row["task"].partition("_")[2] for row in content["rows"]]
    assert names == ["digits_0_1", "fashion_0_1", "location_0_1"]
    assert [("shared" in row) for row in content["rows"]] == [True, True, False]
    sizes = content["bytes"]
    assert sizes["finished"] < sizes["linear"] < sizes["fact_tt"] < sizes["full"]
    assert content["mixed_batch"]["error"] < 1e-5
    assert (content["server"]["tasks"], content["server"]["same_as_the_bank"]) == (3, 3)
    plot_hundred_tasks.draw_accuracy(content, tmp_path / "accuracy.png")
    plot_hundred_tasks.draw_bytes(content, tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").stat().st_size > 10_000


def a_rate_is_chosen(content, out, tmp_path):
    assert list(content["means"]) == ["1.0", "0.5", "0.25", "0.1"]


def forms_are_compared(content, out, tmp_path):
    (forms,) = content["forms"].values()
    assert list(forms) == ["plain", "full", "fast", "lazy"]
    assert forms["plain"]["time_ratio"] == 1
    assert all(row["time_ratio"] > 0 for row in forms.values())


SMALLEST = {
    "speed.consistency": (
        f"{TINY} --batch 2 --rank 2 --rates dropout",
        forms_are_compared,
    ),
    "speed.step": (
        f"{TINY} --batch 2 --steps 1 --only 'ours: linear;ours: evaluation;torch: full'",
        step_measures,
    ),
    "devices.scaling": (f"{TINY} --batch 2 --rank 4 --only split", scaling_measures),
    "speed.evaluate": (f"{TINY} --images 21 --batch 8", evaluation_waits),
    "speed.sweep": (SWEEP, sweep_takes_its_parts),
    "speed.bank": (f"{TINY} --batch 4 --stored 300 --methods fact_tt", the_bank_is_measured),
    "speed.report": ("--tasks kitti", report_is_measured),
    "accuracy.compare": (
        "--methods linear,fact_tk --tasks digits --seeds 0,1 --epochs 1 --workdir {0}/work",
        methods_are_compared,
    ),
    "accuracy.study": (
        "--methods linear --tasks digits --seeds 0,1 --epochs 1 --workdir {0}/work",
        study_goes_on,
    ),
    "accuracy.suite": ("--tasks digits --study {0}/none.json", rows_have(task=("digits",))),
    "accuracy.fewshot": (
        "--methods linear --tasks digits --shots 1 --seeds 0,1 --epochs 1 --workdir {0}/work",
        few_shots_are_compared,
    ),
    "accuracy.quickstart": (
        "--seeds 0 --tasks digits --epochs 1 --workdir {0}/work",
        rows_have(method=("linear", "fact_tt", "fact_tk")),
    ),
    "accuracy.rounding": (
        "--seeds 0 --tasks digits --epochs 1 --ranks 4 --images 20 --finish_epochs 1 "
        "--workdir {0}/work",
        rounding_costs,
    ),
    "accuracy.small_files": (
        "--seeds 0 --tasks digits --epochs 1 --finish_epochs 1 --bits 8/8 --workdir {0}/work",
        few_bits_lose,
    ),
    "accuracy.hundred_tasks": (
        "--tasks 3 --seeds 0,1 --epochs 1 --rounds 1 --workdir {0}/work",
        many_tasks_are_used,
    ),
    "accuracy.dictionary": (
        "--tasks digits,fashion --epochs 1 --ranks 2 --methods fact_tt --workdir {0}/work",
        dictionaries_are_compared,
    ),
    "accuracy.exchange": ("--variant vit_mini --image_size 32", logits_are_close),
    "accuracy.finish_rate": ("--tasks digits --epochs 1 --workdir {0}/work", a_rate_is_chosen),
    "accuracy.offline_val": (
        "--tasks digits --epochs 1 --run pixels --run fact_tt:2:1:0.01 --run full:0.001",
        rows_have(run=("pixels", "fact_tt:2:1:0.01", "full:0.001")),
    ),
    "speed.step_alternatives": ("--variant vit_mini --batch 2 --rounds 1", choices_cost),
    "robustness.serve": ("--seconds 5 --tasks 3", server_withstands),
    "robustness.fuzz": ("--only npz,torch --cases 20", files_are_refused),
    "accuracy.numerics": ("--parts increments", increments_are_measured),
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft's
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_run(run, tmp_path, capsys, name):
    arguments, check = SMALLEST[name]
    content = run(name, arguments.format(tmp_path))
    check(content, capsys.readouterr().out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "values", "images"),
    [
        ("rank", (1, 16), [2, 2]),
        ("images", (1, 2), [1, 2]),
        ("depth", (3, 6), [2, 2]),
        ("trials", (1, 2), [2, 4]),
    ],
)
def test_scaling_makes_a_step_of_every_value(monkeypatch, variable, values, images):
    small = get_variant("vit_mini").replace(width=32, mlp_dim=64, depth=3)
    monkeypatch.setattr(network, "get_variant", lambda name: small)
    usual = {"dtype": "float32", "remat": "none", "attention": "xla", "image_size": 16}
    a = SimpleNamespace(variant="small", batch=2, rank=4, rate=None, **usual)
    rows = []
    for value in values:
        train, row = scaling.prepare(a, variable, value)
        train()
        train()  # its own arguments were donated
        rows.append(row)
    assert [row["images"] for row in rows] == images
    assert rows[0]["temporary_bytes"] < rows[1]["temporary_bytes"]
    assert scaling.prepare(a, "devices", len(jax.devices()) + 1) is None
    assert scaling.prepare(a, "split", 4) is None  # a batch of 2


@pytest.mark.slow
def test_the_check_of_a_device(monkeypatch, run):
    """float32 on a CPU is the reference itself, and bfloat16 is near it."""
    small = get_variant("vit_mini").replace(width=32, mlp_dim=64)
    monkeypatch.setattr(network, "get_variant", lambda name: small)
    monkeypatch.setattr(check_device, "RANKS", {"fact_tt": 4})
    content = run("devices.check_device", "--image_size 16 --depth 2 --batch 2")
    assert [r["dtype"] for r in content["rows"]] == 2 * ["float32", "bfloat16"]
    for row in content["rows"]:
        assert row["passed"]
        names = {"loss", "gradients"} if row["dropout"] else {"logits", "loss", "gradients"}
        assert set(row["errors"]) == names
        exact = row["dtype"] == "float32"
        assert max(row["errors"].values()) < (1e-7 if exact else 0.05)
        assert exact or row["errors"]["gradients"] > 1e-4


@pytest.mark.slow
def test_a_sweep_that_is_told_to_end_estimates_from_what_it_finished(monkeypatch, run):
    real = sweep.run_sweep

    def stopped(config, workdir, console):
        real(config, workdir, console, only=["dtd-fact_tt-seed42", "kitti-fact_tt-seed42"])
        raise sweep.stopping.Terminated

    monkeypatch.setattr(sweep, "run_sweep", stopped)
    content = run("speed.sweep", SWEEP)
    assert (content["cells"], content["cells_planned"]) == (2, 3)
    monkeypatch.setattr(sweep, "run_sweep", mock.Mock(side_effect=sweep.stopping.Terminated))
    with pytest.raises(SystemExit, match="before one of 19 cells"):
        run("speed.sweep", "--variant vit_mini --image_size 32", "none.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ((), ("check_device", "step", "ceiling", "scaling", "evaluate", "sweep_short")),
        (("more",), ("bank", "study")),
        (("study", "--part", "main"), ("study",)),
        (("sweep", "--remat", "block"), ("sweep",)),
    ],
)
def test_all_of_it_in_one_call(tmp_path, mode, parts):
    """benchmarks/devices/gpu.sh on the CPU, with a tiny network."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/devices/gpu.sh", tmp_path, *mode],
        capture_output=True,
        text=True,
        env=os.environ | {"SMOKE": "1", "PATH": path, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {name if name == "check_device" else f"{name}_gpu" for name in parts}
    assert {p.stem for p in tmp_path.glob("*.json")} == names
    for content in (json.loads(path.read_text()) for path in tmp_path.glob("*.json")):
        assert content.get("environment") or content["environments"]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install 'jax[tpu]'; make tpu-compile)",
)
def test_compiles_for_v5e_8(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.tpu_compile", "--out", out, "--programs"]
    parts = ["trials", "split", "evaluation"]
    subprocess.run([*command, *parts], cwd=ROOT, check=True, timeout=1200)
    results = json.loads(out.read_text())["results"]
    assert all(r["gib_per_chip"]["total"] < tpu_compile.CHIP_GIB for r in results)

    # One trial a chip, and evaluations: no chip speaks to another.
    steps = [r for r in results if r["program"] == "training step"]
    stacks, (split,) = ([r for r in steps if (r["trials"] > 1) == many] for many in (True, False))
    assert [r["mesh"] for r in stacks] == [{"trial": n, "data": 1} for n in (8, 16)]
    evaluations = [r for r in results if r["program"] in ("merging", "prediction")]
    assert len(evaluations) == 4
    assert all(r["collectives"] == [] for r in (*stacks, *evaluations))

    # One trial over all: sums of gradients, and nothing of the size of the images or of the model.
    assert split["mesh"] == {"trial": 1, "data": 8}
    assert {c["kind"] for c in split["collectives"]} == {"all-reduce"}
    assert sum(c["times"] * c["bytes"] for c in split["collectives"]) < 10e6

    # No d x d gradient of the frozen kernels, and eight trials are eight times one.
    flops, forward = split["matrix_flops_all_chips"], evaluations[1]["matrix_flops_all_chips"]
    assert evaluations[1]["program"] == "prediction"
    assert (flops / 64) / (forward / 256) < 2.2
    assert stacks[0]["matrix_flops_all_chips"] == pytest.approx(8 * flops, rel=1e-3)
