"""Factor files, ours and the PyTorch code's: in, out, and refused when they do not fit."""

import io
import json
import os
import tracemalloc
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save
from written_factors import METHODS, assert_same, trainable, written

import fact_jax
from fact_jax import (
    FacTCP,
    FacTShared,
    FacTTK,
    FacTTT,
    Linear,
    LoRA,
    UserError,
    VPTDeep,
    get_variant,
    load_factors,
    load_vit,
)
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import check_fits, to_bytes
from fact_jax.files.reference import reference_tensors
from fact_jax.files.weights import checksum
from fact_jax.serving.export import npz_file, torch_file

NAMES = ["caf\udce9", "\x1b[31m", "=1+1", "", "\u202e", "ü", "a\nb"]  # any characters


@pytest.mark.parametrize("method", [*METHODS, FacTTK(3, 1.0, "formula"), Linear()])
def test_our_file_gives_back_what_was_written(tmp_path, small_config, method):
    more = {"task": "dtd", "class_names": NAMES, "protocol": "val"}
    tree = written(tmp_path / "f.safetensors", method, small_config, **more)
    task = load_factors(tmp_path / "f.safetensors")
    assert task.method == method
    assert_same(task, tree)
    assert {k: task.metadata[k] for k in more} == more
    assert task.metadata["num_classes"] == task.num_classes == 7
    assert task.metadata["versions"]["jax"] == jax.__version__
    assert task.metadata["vit"]["layer_norm_eps"] == 1e-6
    check_fits(task, small_config, None)


def test_equal_numbers_make_equal_files(small_config):
    """safetensors alone writes the header in another order each time."""
    tree, more = trainable(METHODS[0], small_config), {"task": "dtd", "class_names": ["ä", "b"]}
    files = {to_bytes(METHODS[0], tree, small_config, more) for _ in range(8)}
    assert len(files) == 1


def with_metadata(metadata, key, value):
    """The texts of a file with another value of `key`, which may lie within ("vit.depth")."""
    outer, _, inner = key.partition(".")
    value = {**json.loads(metadata[outer]), inner: value} if inner else value
    return {**metadata, outer: json.dumps(value)}


# (key, value, words of the error)
STATED = [
    ("method_settings.rank", 3, ["factors/C is ((4, 4, 4)", "(3, 3, 3)"]),
    ("method_settings.rank", 10**18, ["expected a whole number from 1 to 65536"]),
    ("method_settings.rank", "4", ["not a factor file"]),
    ("method_settings.scale", float("nan"), ["not a factor file"]),
    ("method_settings.alpha", 1, ["not a factor file", "alpha"]),
    ("method_settings", [1], ["not a factor file"]),
    ("method", "lora", ["not a factor file", "lora"]),
    ("method", ["fact_tt"], ["not a factor file"]),
    ("method", "x" * 10_000, ["not a factor file"]),
    ("vit", [1], ["not a factor file"]),
    ("vit.num_heads", 0, ["not a factor file"]),
    ("vit.layer_norm_eps", "small", ["not a factor file"]),
    ("vit.width", "24", ["vit.width is '24'; expected a whole number"]),
    ("vit.width", 2**60, ["vit.width is 1152921504606846976"]),
    ("vit.depth", True, ["vit.depth is True"]),
    ("vit.depth", 10**12, ["vit.depth is 1000000000000; expected"]),
    ("vit.mlp_dim", 10**12, ["vit.mlp_dim is 1000000000000"]),
    ("vit.patch_size", 0, ["vit.patch_size is 0; expected a"]),
    ("vit.layer_scale", 1, ["vit.layer_scale is 1"]),
    ("num_classes", 8, ["expected ((8,), 'F32')"]),
    ("num_classes", 0, ["num_classes is 0"]),
    ("class_names", ["a"], ["7 texts"]),
    ("class_names", [*"abcdef", "g" * 1001], ["1,001 characters"]),
    ("class_names", [1] * 7, ["class_names[0] is 1, expected a text"]),
    ("class_names", ["a\0b", *"bcdefg"], ["NUL"]),
    ("image_size", "32", ["image_size is '32'"]),
    ("image_size", 0, ["image_size is 0", "4,096"]),
    ("image_size", 4096, ["1,048,576 patches", "at most 6,000"]),
    ("image_size", 10**6, ["image_size is 1000000"]),
    ("jpeg_quality", 96, ["jpeg_quality is 96, expected 1 to 95"]),
    ("normalisation", "x", ["normalisation is 'x'", "'imagenet'"]),
    ("format_version", 2, ["format version 2"]),
]
# (change of tensors and metadata, words of the error)
OTHERWISE = [
    (lambda t, m: (without(t, "factors/P"), m), ["factors/P is missing"]),
    (
        lambda t, m: ({n.replace("factors/U", "factors/W"): a for n, a in t.items()}, m),
        ["factors/U is missing", "factors/W is unknown"],
    ),
    (
        lambda t, m: ({**t, "factors/P": np.ones((4, 3), "float32")}, m),
        ["factors/P is ((4, 3), 'F32'), expected ((4, 36), 'F32')"],
    ),
    (lambda t, m: ({**t, "head/bias": np.ones(7)}, m), ["'F64'", "head/bias"]),
    (lambda t, m: ({**t, "head/bias": np.full(7, np.inf, "float32")}, m), ["non-finite"]),
    (
        lambda t, m: ({**t, **{f"{i}": np.ones(1) for i in range(10_000)}}, m),
        ["0 is unknown", "9996 more"],
    ),
    (lambda t, m: (t, {}), ["(format_version is missing)"]),
    (lambda t, m: (t, without(m, "num_classes")), ["(num_classes is missing)"]),
    (lambda t, m: (t, {**m, "num_classes": "9" * 5000}), ["5,000 digits"]),
    (lambda t, m: (t, {**m, "task": "[" * 100_000}), ["nested too deeply"]),
    (lambda t, m: (t, {**m, "task": "0" * 5_000_000}), ["more than 4,000,000"]),
]
DAMAGED = OTHERWISE + [
    (lambda t, m, key=key, value=value: (t, with_metadata(m, key, value)), words)
    for key, value, words in STATED
]


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(("change", "words"), DAMAGED)
def test_damaged_and_hostile_files_of_ours_are_refused(tmp_path, small_config, change, words):
    path = tmp_path / "f.safetensors"
    written(path, FacTTK(4), small_config)
    with safe_open(path, "numpy") as file:
        tensors, metadata = change(load(path.read_bytes()), file.metadata())
    path.write_bytes(save(tensors, metadata=metadata))
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        load_factors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for word in ["f.safetensors", *words]:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert peak < 100e6


def test_a_key_that_is_there_twice_is_refused(tmp_path, small_config):
    """safetensors takes the last one without a word."""
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(2), small_config, task="dtd")
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for old, twice, key in (
        (b'"task":', b'"task": "1", "task":', "task"),
        (b'"head/bias":', b'"head/bias": {}, "head/bias":', "head/bias"),
        (b'\\"width\\":', b'\\"width\\": 1, \\"width\\":', "width"),
    ):
        header = content[8:end].replace(old, twice)
        assert len(header) > end - 8
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
        with pytest.raises(UserError, match=rf"f\.safetensors.*the key '{key}' is there 2 times"):
            load_factors(path)


def test_a_head_without_classes_is_not_saved(small_config):
    tree = trainable(FacTTT(2), small_config, classes=0)
    with pytest.raises(UserError, match="a head of 0 classes"):
        to_bytes(FacTTT(2), tree, small_config, {})
    with pytest.raises(UserError, match="a head of 0 classes"):
        reference_tensors(FacTTT(2), tree["factors"], tree["head"])


@pytest.mark.parametrize("method", [LoRA(2), FacTCP(2), FacTShared(2), VPTDeep(2)])
def test_the_pytorch_code_has_no_other_methods(tmp_path, small_config, method):
    path = tmp_path / "f.safetensors"
    written(path, method, small_config)
    words = f"FacT-TT, FacT-TK and the linear probe, no {type(method).__name__}"
    with pytest.raises(UserError, match=words):
        torch_file(load_factors(path))


@pytest.mark.parametrize("end", [0, 4, 2000])
def test_truncated_files_are_refused(tmp_path, small_config, end):
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4), small_config)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"f\.safetensors is not a factor file"):
        load_factors(path)


@pytest.mark.parametrize("read", [load_factors, lambda path: load_vit("vit_mini", path)])
def test_what_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch, read):
    def closed(path, *_):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "folder").mkdir()
    for name in ("f.safetensors", "f.pt", "f.npz"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(Path, "iterdir", closed)
    for name in ("f.safetensors", "f.pt", "f.npz", "folder"):
        with pytest.raises(UserError, match=rf"{name} (cannot be read .Permission|is a folder)"):
            read(tmp_path / name)


def test_missing_files_folders_and_needless_flags(tmp_path, small_config):
    os.mkfifo(tmp_path / "fifo.safetensors")
    written(tmp_path / "f.safetensors", FacTTT(4), small_config)
    for name, words in (
        ("none.safetensors", "does not exist"),
        ("fifo.safetensors", "fifo.safetensors is a FIFO, a socket or a device"),
        ("", "is a folder"),
        ("x\0.safetensors", "cannot be read .embedded null"),
        ("f" * 300 + ".safetensors", "cannot be read .File name too long"),
        ("f" * 300 + ".pt", "cannot be read .File name too long"),
        ("f.safetensors", "says its method and scale itself"),
    ):
        with pytest.raises(UserError, match=words):
            load_factors(tmp_path / name, scale=1.0)


def test_factors_of_other_weights_are_refused(tmp_path, small_vit):
    model, base = small_vit
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4), model.config, variant="small", weights_sha256=checksum(base))
    task = load_factors(path)
    check_fits(task, model.config, checksum(base))
    other = jax.tree.map(lambda x: x + 1e-3, base)
    with pytest.raises(UserError, match="other weights"):
        check_fits(task, model.config, checksum(other))
    check_fits(task, model.config, checksum(other), any_weights=True)
    with pytest.raises(UserError, match=r"f.safetensors.* 24, depth 3.*\(small\).* 768, depth 12"):
        check_fits(task, get_variant("vit_b16"), checksum(base))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gelu": "tanh"}, ["for gelu exact", "has gelu tanh", "load_vit(", "gelu='exact')"]),
        ({"layer_norm_eps": 1e-12}, ["eps 1e-06", "eps 1e-12", "layer_norm_eps=1e-06)"]),
        ({"num_heads": 4}, ["for num_heads 3", "has num_heads 4", "Give the variant"]),
        ({"patch_size": 8}, ["patch_size 4", "patch_size 8", "Give the variant"]),
        ({"layer_scale": True}, ["layer_scale False", "layer_scale True", "Give the variant"]),
    ],
)
def test_factors_of_another_forward_pass_are_refused(tmp_path, small_vit, change, words):
    model, base = small_vit
    written(tmp_path / "f.safetensors", FacTTT(4), model.config)
    task = load_factors(tmp_path / "f.safetensors")
    config = model.config.replace(**change)
    with pytest.raises(UserError) as caught:
        fact_jax.Predictor(fact_jax.ViT(config), base, task)
    for word in words:
        assert word in str(caught.value)
    if set(change) <= set(task.forward_settings):
        config = config.replace(**task.forward_settings)
        fact_jax.Predictor(fact_jax.ViT(config), base, task)
    same = model.config.replace(image_size=32, dtype="bfloat16", precision="highest")
    check_fits(task, same, None)


def test_an_npz_with_layer_scale_is_written_with_a_warning(small_vit):
    model, _ = small_vit
    config = model.config.replace(layer_scale=True)
    base = init_base(config, jax.random.key(0))
    with pytest.warns(UserWarning, match="LayerScale.*leave it out"):
        content = npz_file(config, base)
    with np.load(io.BytesIO(content)) as arrays:
        assert "Transformer/encoderblock_0/LayerScale_0" in arrays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npz_file(model.config, small_vit[1])
