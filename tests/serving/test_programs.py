"""A task as a program: StableHLO run in a process without this package, ONNX by ONNX Runtime.

ONNX is tried where jax2onnx and onnxruntime are installed (docs/exchange.md).
"""

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from backbone_kinds import KINDS, tiny_vit
from jax import export
from safetensors.numpy import load_file
from written_factors import trainable

from fact_jax import (
    FacTTK,
    FacTTT,
    LoRA,
    Predictor,
    UserError,
    VPTDeep,
    load_factors,
    load_vit,
)
from fact_jax.files.factors import to_bytes
from fact_jax.files.folder import write_folder
from fact_jax.serving import programs
from fact_jax.serving.folders import card_of
from fact_jax.serving.programs import Program

LABELS = [f"class {i}" for i in range(7)]
RUN = """
import sys
import numpy as np
from jax import export

with open(sys.argv[1] + "/model.stablehlo", "rb") as file:
    model = export.deserialize(bytearray(file.read()))
assert not any(name.startswith("fact_jax") for name in sys.modules)
np.save(sys.argv[3], model.call(np.load(sys.argv[2])))
"""


def program_of(path, method, seed=0, classes=7):
    """The program of a written task of random numbers on the bundled ViT."""
    model, base = load_vit("vit_mini")
    tree = trainable(method, model.config, classes, seed)
    tree["factors"] = jax.tree.map(lambda x: 0.3 * x, tree["factors"])
    entries = {"class_names": LABELS[:classes], "normalisation": "imagenet", "image_size": 32}
    path.write_bytes(to_bytes(method, tree, model.config, entries))
    task = load_factors(path)
    return Program(model.config, base, task, card_of(task, model.config, "", {})), model


def pictures(count):
    return np.random.default_rng(count).normal(size=(count, 32, 32, 3)).astype("float32")


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", [FacTTK(4, 3.0), VPTDeep(3)], ids=["merged", "prompts"])
def test_a_stablehlo_artefact_runs_without_this_package(tmp_path, method):
    program, model = program_of(tmp_path / "f.safetensors", method)
    write_folder(tmp_path / "model", programs.stablehlo_files(program))
    predictor = Predictor(model, program.base, program.task)
    for count in (1, 5):
        np.save(tmp_path / "x.npy", pictures(count))
        out = subprocess.run(
            [sys.executable, "-c", RUN, *(tmp_path / n for n in ("model", "x.npy", "y.npy"))],
            env={**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert out.returncode == 0, out.stderr
        assert_close(np.load(tmp_path / "y.npy"), predictor.logits(pictures(count)))
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["labels"] == LABELS
    assert about["versions"]["jax"] == jax.__version__
    assert about["input"]["shape"] == ["b", 32, 32, 3]
    assert about["preprocessing"]["image_mean"] == [0.485, 0.456, 0.406]
    assert len(about["date"]) == 10
    assert "model.call(images)" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_programs_of_every_kind_of_vit_take_any_batch(tmp_path, kind):
    vit, base = tiny_vit(kind)
    method, path = LoRA(2, 0.3, "q,v,fc1"), tmp_path / "f.safetensors"
    path.write_bytes(to_bytes(method, trainable(method, vit.config), vit.config, {}))
    task = load_factors(path)
    program = Program(vit.config, base, task, card_of(task, vit.config, "", {}))
    content = programs.stablehlo_files(program)["model.stablehlo"]
    side = vit.config.image_size
    images = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype("float32")
    found = export.deserialize(bytearray(content)).call(images)
    assert_close(found, Predictor(vit, base, task).logits(images))


def test_stablehlo_asks_for_its_extra(tmp_path, monkeypatch):
    program, _ = program_of(tmp_path / "f.safetensors", FacTTT(2, 1.0))
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match=r"needs flatbuffers: pip install 'fact-jax\[stablehlo\]'"):
        programs.stablehlo_files(program)


def test_onnx_asks_for_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "jax2onnx" else 1)
    program, _ = program_of(tmp_path / "f.safetensors", FacTTT(2, 1.0))
    for write in (programs.onnx_files, programs.onnx_factors_files):
        with pytest.raises(UserError, match=r"ONNX needs jax2onnx: pip install 'fact-jax\[onnx\]'"):
            write(program)


@pytest.fixture
def runtime():
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return lambda path: onnxruntime.InferenceSession(path / "model.onnx", options)


# Of jax2onnx, and of NumPy's and ONNX's deprecations within it.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("method", [FacTTT(4, 3.0), VPTDeep(3)], ids=["merged", "prompts"])
def test_an_onnx_model_gives_our_logits(tmp_path, runtime, method):
    program, model = program_of(tmp_path / "f.safetensors", method)
    write_folder(tmp_path / "model", programs.onnx_files(program))
    session = runtime(tmp_path / "model")
    predictor = Predictor(model, program.base, program.task)
    for count in (1, 5):
        (found,) = session.run(None, {"images": pictures(count)})
        assert_close(found, predictor.logits(pictures(count)))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "method", [FacTTT(4, 3.0), FacTTK(3, 2.0), LoRA(2)], ids=["tt", "tk", "lora"]
)
def test_one_onnx_graph_serves_all_tasks_of_a_method(tmp_path, runtime, method):
    """The task is fed as its factor file has it, with another number of classes and scale."""
    program, _ = program_of(tmp_path / "f.safetensors", method)
    write_folder(tmp_path / "model", programs.onnx_factors_files(program))
    session = runtime(tmp_path / "model")
    for seed, classes, scale in ((1, 7, method.scale), (2, 3, 0.7)):
        path = tmp_path / f"{seed}.safetensors"
        other, model = program_of(path, type(method)(method.rank, scale), seed, classes)
        feed = {**load_file(path), "scale": np.array(scale, np.float32)}
        (found,) = session.run(None, {"images": pictures(4), **feed})
        expected = Predictor(model, other.base, other.task).logits(pictures(4))
        assert found.shape == (4, classes)
        assert_close(found, expected)


def test_what_jax2onnx_cannot_write_is_told(tmp_path, monkeypatch):
    def to_onnx(*args, **kwargs):
        raise NotImplementedError("No plugins registered for primitive 'x'")

    monkeypatch.setattr(programs, "find_spec", lambda name: 1)
    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
    program, _ = program_of(tmp_path / "f.safetensors", FacTTT(2, 1.0))
    with pytest.raises(UserError, match="cannot write this program .NotImplementedError: No plug"):
        programs.onnx_files(program)
