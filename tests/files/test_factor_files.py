"""Factor files, ours and the PyTorch code's: in, out, and refused when they do not fit."""

import io
import json
import os
import time
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
from fact_jax import FacTTK, FacTTT, Linear, UserError, get_variant, load_factors, load_vit
from fact_jax.backbone.vit import init_base
from fact_jax.files.factors import check_fits, to_bytes
from fact_jax.files.reference import reference_tensors
from fact_jax.files.weights import checksum
from fact_jax.serving.export import npz_file


@pytest.mark.parametrize("method", [*METHODS, FacTTK(3, 1.0, "formula"), Linear()])
def test_our_file_gives_back_what_was_written(tmp_path, small_config, method):
    more = {"task": "dtd", "class_names": list("abcdefg"), "protocol": "val"}
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


def _metadata(key, value):
    return lambda t, m: (t, {**m, key: json.dumps(value)})


def _inner(key, **values):
    return lambda t, m: (t, {**m, key: json.dumps({**json.loads(m[key]), **values})})


DAMAGED = {
    "missing": (
        lambda t, m: ({n: a for n, a in t.items() if n != "factors/P"}, m),
        ["factors/P is missing"],
    ),
    "renamed": (
        lambda t, m: ({n.replace("factors/U", "factors/W"): a for n, a in t.items()}, m),
        ["factors/U is missing", "factors/W is unknown"],
    ),
    "shape": (
        lambda t, m: ({**t, "factors/P": np.ones((4, 3), "float32")}, m),
        ["factors/P is ((4, 3), 'F32'), expected ((4, 36), 'F32')"],
    ),
    "dtype": (lambda t, m: ({**t, "head/bias": np.ones(7)}, m), ["'F64'", "head/bias"]),
    "not finite": (
        lambda t, m: ({**t, "head/bias": np.full(7, np.inf, "float32")}, m),
        ["non-finite"],
    ),
    "many more": (
        lambda t, m: ({**t, **{f"{i}": np.ones(1) for i in range(10_000)}}, m),
        ["0 is unknown", "9996 more"],
    ),
    "rank": (_inner("method_settings", rank=3), ["factors/C is ((4, 4, 4)", "(3, 3, 3)"]),
    "rank of a bomb": (
        _inner("method_settings", rank=10**18),
        ["expected a whole number from 1 to 65536"],
    ),
    "blocks of a bomb": (_inner("vit", depth=10**12), ["vit.depth is 1000000000000; expected"]),
    "rank as text": (_inner("method_settings", rank="4"), ["not a factor file"]),
    "scale as text": (_inner("method_settings", scale="4"), ["not a factor file"]),
    "scale nan": (_inner("method_settings", scale=float("nan")), ["not a factor file"]),
    "setting": (_inner("method_settings", alpha=1), ["not a factor file", "alpha"]),
    "heads": (_inner("vit", num_heads=0), ["not a factor file"]),
    "epsilon": (_inner("vit", layer_norm_eps="small"), ["not a factor file"]),
    "method": (_metadata("method", "lora"), ["not a factor file", "lora"]),
    "classes": (_metadata("num_classes", 8), ["expected ((8,), 'F32')"]),
    "class names": (_metadata("class_names", ["a"]), ["7 texts"]),
    "long class name": (_metadata("class_names", [*"abcdef", "g" * 1001]), ["1,001 characters"]),
    "class numbers": (_metadata("class_names", [1] * 7), ["class_names[0] is 1, expected a text"]),
    "no classes": (_metadata("num_classes", 0), ["num_classes is 0"]),
    "image size": (_metadata("image_size", "32"), ["image_size is '32'"]),
    "no image size": (_metadata("image_size", 0), ["image_size is 0", "4,096"]),
    "image of many patches": (
        _metadata("image_size", 4096),
        ["1,048,576 patches", "at most 6,000"],
    ),
    "width as text": (_inner("vit", width="24"), ["vit.width is '24'; expected a whole number"]),
    "depth as truth": (_inner("vit", depth=True), ["vit.depth is True"]),
    "width of a bomb": (_inner("vit", width=2**60), ["vit.width is 1152921504606846976"]),
    "an MLP of a bomb": (_inner("vit", mlp_dim=10**12), ["vit.mlp_dim is 1000000000000"]),
    "no patch": (_inner("vit", patch_size=0), ["vit.patch_size is 0; expected a"]),
    "scales": (_inner("vit", layer_scale=1), ["vit.layer_scale is 1"]),
    "vit": (_metadata("vit", [1]), ["not a factor file"]),
    "settings": (_metadata("method_settings", [1]), ["not a factor file"]),
    "method as a list": (_metadata("method", ["fact_tt"]), ["not a factor file"]),
    "name of the method": (_metadata("method", "x" * 10_000), ["not a factor file"]),
    "NUL in a name": (_metadata("class_names", ["a\0b", *"bcdefg"]), ["NUL"]),
    "long number": (lambda t, m: (t, {**m, "num_classes": "9" * 5000}), ["5,000 digits"]),
    "image size of a bomb": (_metadata("image_size", 10**6), ["image_size is 1000000"]),
    "jpeg quality": (_metadata("jpeg_quality", 96), ["jpeg_quality is 96, expected 1 to 95"]),
    "normalisation": (_metadata("normalisation", "x"), ["normalisation is 'x'", "'imagenet'"]),
    "version": (_metadata("format_version", 2), ["format version 2"]),
    "no metadata": (lambda t, m: (t, {}), ["(format_version is missing)"]),
    "no classes stated": (
        lambda t, m: (t, {k: v for k, v in m.items() if k != "num_classes"}),
        ["(num_classes is missing)"],
    ),
    "deep metadata": (lambda t, m: (t, {**m, "task": "[" * 100_000}), ["nested too deeply"]),
    "large metadata": (lambda t, m: (t, {**m, "task": "0" * 5_000_000}), ["more than 4,000,000"]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_and_hostile_files_of_ours_are_refused(tmp_path, small_config, case):
    change, words = DAMAGED[case]
    path = tmp_path / "f.safetensors"
    written(path, FacTTK(4), small_config)
    with safe_open(path, "numpy") as file:
        tensors, metadata = change(load(path.read_bytes()), file.metadata())
    path.write_bytes(save(tensors, metadata=metadata))
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load_factors(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
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


def test_a_header_of_megabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "f.safetensors"
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(entry % i for i in range(200_000)) + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    started = time.process_time()
    with pytest.raises(UserError, match=r"f\.safetensors.*a header of"):
        load_factors(path)
    assert time.process_time() - started < 1


def test_class_names_may_be_of_any_characters(tmp_path, small_config):
    names = ["caf\udce9", "\x1b[31m", "=1+1", "", "\u202e", "ü", "a\nb"]
    written(tmp_path / "f.safetensors", FacTTT(2), small_config, class_names=names)
    assert load_factors(tmp_path / "f.safetensors").metadata["class_names"] == names


def test_a_head_without_classes_is_not_saved(small_config):
    tree = trainable(FacTTT(2), small_config, classes=0)
    with pytest.raises(UserError, match="a head of 0 classes"):
        to_bytes(FacTTT(2), tree, small_config, {})
    with pytest.raises(UserError, match="a head of 0 classes"):
        reference_tensors(FacTTT(2), tree["factors"], tree["head"])


@pytest.mark.parametrize("kept", [0, 4, 200, 2000, -1])
def test_truncated_files_are_refused(tmp_path, small_config, kept):
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4), small_config)
    path.write_bytes(path.read_bytes()[:kept])
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
    with pytest.raises(UserError, match="does not exist"):
        load_factors(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "fifo.safetensors")
    with pytest.raises(UserError, match="fifo.safetensors is a FIFO, a socket or a device"):
        load_factors(tmp_path / "fifo.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        load_factors(tmp_path)
    with pytest.raises(UserError, match="cannot be read .embedded null"):
        load_factors("x\0.safetensors")
    for name in ("f" * 300 + ".safetensors", "f" * 300 + ".pt"):
        with pytest.raises(UserError, match="cannot be read .File name too long"):
            load_factors(tmp_path / name, scale=1.0)
    written(tmp_path / "f.safetensors", FacTTT(4), small_config)
    with pytest.raises(UserError, match="says its method and scale itself"):
        load_factors(tmp_path / "f.safetensors", scale=1.0)


def test_factors_that_do_not_fit_the_base_are_refused(tmp_path, small_vit):
    model, base = small_vit
    config = model.config
    path = tmp_path / "f.safetensors"
    written(path, FacTTT(4), config, variant="small", weights_sha256=checksum(base))
    task = load_factors(path)
    check_fits(task, config, checksum(base))
    with pytest.raises(UserError) as caught:
        check_fits(task, get_variant("vit_b16"), checksum(base))
    for word in ("width 24, depth 3", "(small)", "width 768, depth 12", "f.safetensors"):
        assert word in str(caught.value)
    other = jax.tree.map(lambda x: x + 1e-3, base)
    with pytest.raises(UserError, match="other weights"):
        check_fits(task, config, checksum(other))
    check_fits(task, config, checksum(other), any_weights=True)


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
    config = config.replace(**task.forward_settings)
    if set(change) <= set(task.forward_settings):
        fact_jax.Predictor(fact_jax.ViT(config), base, task)
    same = model.config.replace(image_size=32, dtype="bfloat16", precision="highest")
    check_fits(task, same, None)


def test_an_npz_with_layer_scale_is_written_with_a_warning(small_vit):
    model, _ = small_vit
    config = model.config.replace(layer_scale=True)
    base = init_base(config, jax.random.key(0))
    with pytest.warns(UserWarning, match="LayerScale.*leave them at 1"):
        content = npz_file(config, base)
    with np.load(io.BytesIO(content)) as arrays:
        assert "Transformer/encoderblock_0/LayerScale_0" in arrays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npz_file(model.config, small_vit[1])
