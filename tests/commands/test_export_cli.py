"""`python -m experiments.export` as a user runs it, on the bundled ViT."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_results import result as made_result
from run_command import run_command
from written_factors import assert_same, written

import fact_jax
from fact_jax import FacTTK, FacTTT, get_variant, load_factors, load_vit
from fact_jax.cli import export_folder
from fact_jax.files.download import BUNDLED
from fact_jax.files.factors import check_fits
from fact_jax.files.torch_zip import TorchZip
from fact_jax.files.weights import checksum


def export(*arguments):
    return run_command("experiments.export", *arguments)


def test_export_to_the_pytorch_code_and_back(tmp_path):
    config, (_, base) = get_variant("vit_mini"), load_vit("vit_mini")
    path, method, back = tmp_path / "f.safetensors", FacTTK(4, 0.5), tmp_path / "back.safetensors"
    entries = {"variant": "vit_mini", "weights_sha256": checksum(base)}
    tree = written(path, method, config, normalisation="imagenet", **entries)
    out = export("--factors", path, "--out", tmp_path / "f.pt")
    assert out.returncode == 0, out.stderr
    assert "scale 0.5" in out.stderr
    assert "rank 4" in out.stderr
    assert "FacTc" in TorchZip(tmp_path / "f.pt").shapes
    out = export(
        *("--factors", tmp_path / "f.pt", "--scale", 0.5, "--method", "tk", "--out", back),
        *("--variant", "vit_mini", "--weights", BUNDLED["vit_mini"]),
    )
    assert out.returncode == 0, out.stderr
    task = load_factors(back)
    assert task.method == method
    assert_same(task, tree)
    check_fits(task, config, checksum(base))
    assert (task.metadata["image_size"], task.metadata["normalisation"]) == (32, "imagenet")
    out = export("--factors", back, "--out", tmp_path / "again.safetensors")
    assert out.returncode == 2
    assert "is a factor file of fact-jax already" in out.stderr


def test_export_of_merged_weights_and_of_weights_alone(tmp_path):
    """Increments are not merged into other weights unless it is wanted."""
    model, base = load_vit("vit_mini")
    path, merged = tmp_path / "f.safetensors", tmp_path / "new" / "merged.npz"
    other = {"variant": "vit_mini", "weights_sha256": "0" * 64}
    tree = written(path, FacTTT(4, 0.1), model.config, **other)
    out = export("--factors", path, "--out", merged)
    assert out.returncode == 2
    assert "trained on other weights" in out.stderr
    assert not merged.exists()
    out = export("--factors", path, "--out", merged, "--any_weights")
    assert out.returncode == 0, out.stderr
    with np.load(merged) as arrays:
        np.testing.assert_array_equal(arrays["head/kernel"], tree["head"]["kernel"])
        np.testing.assert_array_equal(arrays["head/bias"], tree["head"]["bias"])
    again, weights = load_vit("vit_mini", merged)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    adaptation = FacTTT(4, 0.1).adaptation(tree["factors"], model.config)
    expected = fact_jax.features(model, base, images, adaptation)
    np.testing.assert_allclose(fact_jax.features(again, weights, images), expected, atol=1e-4)
    assert np.abs(expected - fact_jax.features(model, base, images)).max() > 0.1
    out = export("--variant", "vit_mini", "--out", tmp_path / "weights.npz")
    assert out.returncode == 0, out.stderr
    assert checksum(load_vit("vit_mini", tmp_path / "weights.npz")[1]) == checksum(base)


def test_export_of_a_lora_adapter_and_back(tmp_path):
    """The adapter of a sweep's task is predicted with, rounded, and made a factor file again."""
    config, (_, base) = get_variant("vit_mini"), load_vit("vit_mini")
    (tmp_path / "factors").mkdir()
    path, adapter = tmp_path / "factors" / "f.safetensors", tmp_path / "adapter"
    entries = {"variant": "vit_mini", "weights_sha256": checksum(base), "normalisation": "imagenet"}
    written(path, FacTTT(4, 0.1), config, image_size=32, **entries)
    out = export("--factors", path, "--format", "peft", "--out", adapter, "--base_model", "a/b")
    assert out.returncode == 0, out.stderr
    assert "accuracy | not stated" in (adapter / "README.md").read_text()
    images = tmp_path / "x.npy"
    np.save(images, np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32"))
    again = tmp_path / "again.safetensors"
    out = export("--factors", adapter, "--out", again)
    assert out.returncode == 0, out.stderr
    assert load_factors(again).metadata["weights_sha256"] == checksum(base)
    rounded = tmp_path / "rounded.safetensors"
    out = run_command(
        *("experiments.round", "--factors", adapter, "--out", rounded),
        *("--method", "fact_tt", "--rank", 4),
    )
    assert out.returncode == 0, out.stderr
    assert load_factors(rounded).method == FacTTT(4, 1.0)
    logits = []
    for factors in (path, adapter, again, rounded):
        arguments = ("--factors", factors, "--images", images, "--out", tmp_path / "y.npy")
        out = run_command("experiments.predict", *arguments)
        assert out.returncode == 0, out.stderr
        logits.append(np.load(tmp_path / "y.npy"))
    for others in logits[1:]:
        np.testing.assert_allclose(others, logits[0], atol=2e-5 * np.abs(logits[0]).max())


def test_an_adapter_of_other_features_than_the_variant_s_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4, 0.5), get_variant("vit_mini").replace(pooling="mean"))
    arguments = ("--factors", path, "--format", "peft", "--variant", "vit_mini")
    out = export(*arguments, "--out", tmp_path / "adapter")
    assert out.returncode == 2
    assert "was trained for pooling mean" in out.stderr
    assert not (tmp_path / "adapter").exists()


def test_the_card_has_the_accuracy_of_the_work_directory(tmp_path):
    """The result lies beside the factor file; a damaged one says nothing."""
    (tmp_path / "factors").mkdir()
    (tmp_path / "results").mkdir()
    path = tmp_path / "factors" / "digits-lora-seed3.safetensors"
    result = tmp_path / "results" / "digits-lora-seed3.json"
    result.write_text(json.dumps(made_result(accuracy=81.25, seed=3, num_test=640)))
    assert export_folder.measured(path) == {
        "accuracy": "81.25 % of 640 test images",
        "protocol": "val, seed 3, 1,000 training images",
    }
    result.write_text("{}")
    assert export_folder.measured(path) == {"accuracy": "not stated"}
    assert export_folder.measured(tmp_path / "digits.safetensors") == {"accuracy": "not stated"}


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_export_of_a_merged_model_as_a_folder(tmp_path, to):
    config = get_variant("vit_mini")
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4, 0.1), config, variant="vit_mini", class_names=[*"abcdefg"])
    out = export("--factors", path, "--format", to, "--out", tmp_path / "model")
    assert out.returncode == 0, out.stderr
    out = export("--factors", path, "--out", tmp_path / "merged.npz")
    model, base = load_vit("vit_mini", tmp_path / "model")
    _, expected = load_vit("vit_mini", tmp_path / "merged.npz")
    assert checksum(base) == checksum(expected)
    assert '"g"' in (tmp_path / "model" / "config.json").read_text()
    out = export("--factors", path, "--format", to, "--out", tmp_path / "model")
    assert out.returncode == 2
    assert "is a folder that is not empty" in out.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "hf", "--out", "README.md"], "README.md is a file; a folder is written"),
        (["--format", "peft", "--variant", "vit_mini", "--out", "~/none"], "needs a trained task"),
        (["--format", "hf"], "--out is missing"),
        (["--factors", "none.pt", "--out", "README.md/x.pt"], "README.md/x.pt cannot be written"),
        (["--out", "~/none.onnx"], str(Path("~/none.onnx").expanduser())),
        (["--out", "x.onnx"], "must end in .pt"),
        (["--out", "x.pt"], "Without --factors"),
        (["--out", "x.npz"], "--variant"),
    ],
)
def test_export_mistakes_are_answered_in_a_paragraph(arguments, words):
    out = export(*arguments)
    assert out.returncode == 2
    assert words in out.stderr
    assert "Traceback" not in out.stderr
