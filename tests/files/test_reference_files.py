"""Factor files of the PyTorch code: in, out, and refused when they do not fit."""

import numpy as np
import pytest
from written_factors import METHODS, assert_same, trainable

from fact_jax import FacTTK, FacTTT, UserError, get_variant, load_factors
from fact_jax.files.factors import check_fits
from fact_jax.files.reference import reference_tensors
from fact_jax.files.torch_zip import torch_bytes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_pytorch_code_s_file_gives_back_what_was_written(
    tmp_path, small_config, method, prefix
):
    tree = trainable(method, small_config)
    tensors = reference_tensors(method, tree["factors"], tree["head"])
    path = tmp_path / "f.pt"
    path.write_bytes(torch_bytes({prefix + name: a for name, a in tensors.items()}))
    task = load_factors(path, scale=method.scale)
    assert task.method == method
    assert_same(task, tree)
    check_fits(task, small_config, None)


def test_names_and_shapes_are_the_pytorch_code_s():
    config = get_variant("vit_b16")
    for method, own in {
        FacTTT(16): {
            **{
                f"blocks.{i}.attn.{s}_FacTs.weight": (16, 16)
                for i in range(12)
                for s in ("q", "k", "v", "proj")
            },
            **{f"blocks.{i}.mlp.fc1_FacTs.weight": (64, 16) for i in range(12)},
            **{f"blocks.{i}.mlp.fc2_FacTs.weight": (16, 64) for i in range(12)},
        },
        FacTTK(32): {"FacTc": (32, 32, 32), "FacTp": (32, 144)},
    }.items():
        tree = trainable(method, config, classes=100)
        tensors = reference_tensors(method, tree["factors"], tree["head"])
        r = method.rank
        uv = {"FacTu.weight": (r, 768), "FacTv.weight": (768, r)}
        head = {"head.weight": (100, 768), "head.bias": (100,)}
        assert {n: a.shape for n, a in tensors.items()} == {**uv, **head, **own}
        assert {a.dtype for a in tensors.values()} == {np.dtype("float32")}


def reference_increments(tensors, tucker, layer, rank):
    """The released forward pass's additions, per site, as functions of its input (NumPy)."""
    u, v = tensors["FacTu.weight"].T, tensors["FacTv.weight"].T
    if tucker:
        cores = tensors["FacTc"] @ tensors["FacTp"][:, 12 * layer : 12 * (layer + 1)]
        four = [cores[:, :, i] for i in range(4)]
        fc1 = cores[:, :, 4:8].reshape(rank, 4 * rank)
        fc2 = cores[:, :, 8:].reshape(rank, 4 * rank).T
    else:
        block = f"blocks.{layer}."
        four = [tensors[f"{block}attn.{s}_FacTs.weight"].T for s in ("q", "k", "v", "proj")]
        fc1 = tensors[f"{block}mlp.fc1_FacTs.weight"].T
        fc2 = tensors[f"{block}mlp.fc2_FacTs.weight"].T
    sites = {s: lambda x, core=core: x @ u @ core @ v for s, core in zip("qkvo", four, strict=True)}
    n = lambda x: (len(x), 4, -1)  # noqa: E731
    sites["fc1"] = lambda x: ((x @ u @ fc1).reshape(n(x)) @ v).reshape(len(x), -1)
    sites["fc2"] = lambda x: (x.reshape(n(x)) @ u).reshape(len(x), -1) @ fc2 @ v
    return sites


@pytest.mark.parametrize("method", METHODS)
def test_a_file_means_the_increments_of_the_released_forward_pass(tmp_path, small_config, method):
    tree = trainable(method, small_config)
    tensors = reference_tensors(method, tree["factors"], tree["head"])
    (tmp_path / "f.pt").write_bytes(torch_bytes(tensors))
    task = load_factors(tmp_path / "f.pt", scale=method.scale)
    adaptation = task.method.adaptation(task.factors, small_config)
    rng = np.random.default_rng(1)
    for layer in range(small_config.depth):
        sites = reference_increments(tensors, isinstance(method, FacTTK), layer, method.rank)
        for site, increment in sites.items():
            dense = np.asarray(adaptation.site(site)[0].increment())[layer]
            x = rng.normal(size=(3, len(dense))).astype("float32")
            expected = method.scale * increment(x)
            error = np.abs(x @ dense - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (site, layer)


def test_what_the_pytorch_code_cannot_hold_is_refused(small_config):
    formula = FacTTK(4, 1.0, "formula")
    tree = trainable(formula, small_config)
    with pytest.raises(UserError, match="interleaves"):
        reference_tensors(formula, tree["factors"], tree["head"])
    narrow = small_config.replace(mlp_dim=48)
    tree = trainable(FacTTT(4), narrow)
    with pytest.raises(UserError, match="into 4 slices"):
        reference_tensors(FacTTT(4), tree["factors"], tree["head"])


def test_half_precision_files_of_pytorch_become_float32(tmp_path, small_config):
    tree = trainable(FacTTT(2), small_config)
    tensors = reference_tensors(FacTTT(2), tree["factors"], tree["head"])
    tensors = {n: a.astype("float16") for n, a in tensors.items()}
    (tmp_path / "f.pt").write_bytes(torch_bytes(tensors))
    task = load_factors(tmp_path / "f.pt", "tt", 1.0)
    np.testing.assert_array_equal(task.factors["U"], tree["factors"]["U"].astype("float16"))
    assert task.factors["U"].dtype == np.float32


FOREIGN = {
    "no scale": (lambda t: t, {}, ["--scale", "configs/tt"]),
    "nan scale": (lambda t: t, {"scale": float("nan")}, ["scale is nan"]),
    "other method": (lambda t: t, {"scale": 1.0, "method": "tk"}, ["'tt'", "'tk'"]),
    "renamed": (
        lambda t: {n.replace("q_F", "qF"): a for n, a in t.items()},
        {"scale": 1.0},
        ["blocks.0.attn.k_FacTs.weight is unknown", "14 more"],
    ),
    "one renamed": (
        lambda t: {n.replace("0.attn.k_", "0.attn.x_"): a for n, a in t.items()},
        {"scale": 1.0},
        ["attn.k_FacTs.weight is missing", "x_FacTs.weight is unk"],
    ),
    "one more": (
        lambda t: {**t, "norm.weight": np.ones(24, "float32")},
        {"scale": 1.0},
        ["norm.weight is unknown"],
    ),
    "no blocks": (
        lambda t: {n: a for n, a in t.items() if "blocks" not in n},
        {"scale": 1.0},
        ["no factors of any block"],
    ),
    "no head": (
        lambda t: {n: a for n, a in t.items() if "head" not in n},
        {"scale": 1.0},
        ["not a factor file", "head.weight"],
    ),
    "shape": (
        lambda t: {**t, "FacTv.weight": t["FacTv.weight"].T},
        {"scale": 1.0},
        ["FacTv.weight is (2, 24), expected (24, 2)"],
    ),
    "no classes": (
        lambda t: {
            **t,
            "head.weight": np.ones((0, 24), "float32"),
            "head.bias": np.ones(0, "float32"),
        },
        {"scale": 1.0},
        ["a head of 0 classes"],
    ),
    "no rank": (
        lambda t: {**t, "FacTu.weight": np.ones((0, 24), "float32")},
        {"scale": 1.0},
        ["not a factor file"],
    ),
    "vector": (
        lambda t: {**t, "FacTu.weight": np.ones(5, "float32")},
        {"scale": 1.0},
        ["not a factor file"],
    ),
    "integers": (lambda t: {**t, "head.bias": np.arange(7)}, {"scale": 1.0}, ["int64"]),
    "not finite": (
        lambda t: {**t, "head.bias": np.full(7, np.nan, "float32")},
        {"scale": 1.0},
        ["'head.bias'", "not finite"],
    ),
    "prefix of some": (
        lambda t: {("" if n == "head.bias" else "module.") + n: a for n, a in t.items()},
        {"scale": 1.0},
        ["'head.bias'", "'module.'"],
    ),
    "colliding prefix": (
        lambda t: {**{"module." + n: a for n, a in t.items()}, **t},
        {"scale": 1.0},
        ["FacTu.weight"],
    ),
    "one factor twice": (
        lambda t: {**t, "module.FacTu.weight": t["FacTu.weight"]},
        {"scale": 1.0},
        ["module.FacTu.weight is unknown"],
    ),
    "a backbone": (
        lambda t: {"blocks.0.attn.qkv.weight": np.ones((72, 24), "float32")},
        {"scale": 1.0},
        ["not a factor file", "blocks.0.attn.qkv.weight"],
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_pytorch_files_that_are_no_factors_are_refused(tmp_path, small_config, case):
    change, arguments, words = FOREIGN[case]
    tree = trainable(FacTTT(2), small_config)
    tensors = change(reference_tensors(FacTTT(2), tree["factors"], tree["head"]))
    (tmp_path / "f.pt").write_bytes(torch_bytes(tensors))
    with pytest.raises(UserError) as caught:
        load_factors(tmp_path / "f.pt", **arguments)
    for word in ["f.pt", *words] if "nan" not in case else words:
        assert word in str(caught.value)
