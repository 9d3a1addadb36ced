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


TT_NAMES = {
    **{f"attn.{s}_FacTs.weight": (16, 16) for s in ("q", "k", "v", "proj")},
    "mlp.fc1_FacTs.weight": (64, 16),
    "mlp.fc2_FacTs.weight": (16, 64),
}


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (FacTTT(16), {f"blocks.{i}.{n}": s for i in range(12) for n, s in TT_NAMES.items()}),
        (FacTTK(32), {"FacTc": (32, 32, 32), "FacTp": (32, 144)}),
    ],
)
def test_names_and_shapes_are_the_pytorch_code_s(method, names):
    tree = trainable(method, get_variant("vit_b16"), classes=100)
    tensors = reference_tensors(method, tree["factors"], tree["head"])
    uv = {"FacTu.weight": (method.rank, 768), "FacTv.weight": (768, method.rank)}
    head = {"head.weight": (100, 768), "head.bias": (100,)}
    assert {n: a.shape for n, a in tensors.items()} == {**uv, **head, **names}
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


def without(tensors, part):
    return {n: a for n, a in tensors.items() if part not in n}


def renamed(tensors, old, new):
    return {n.replace(old, new): a for n, a in tensors.items()}


def replaced(tensors, **arrays):
    """`head_bias` is the tensor head.bias; all in float32."""
    return {**tensors, **{n.replace("_", "."): a for n, a in arrays.items()}}


NO_CLASSES = {"head_weight": np.ones((0, 24), "float32"), "head_bias": np.ones(0, "float32")}
# (change of the tensors, words of the error)
FOREIGN = [
    (lambda t: renamed(t, "q_F", "qF"), ["blocks.0.attn.k_FacTs.weight is unknown", "14 more"]),
    (
        lambda t: renamed(t, "0.attn.k_", "0.attn.x_"),
        ["attn.k_FacTs.weight is missing", "x_FacTs.weight is unk"],
    ),
    (lambda t: replaced(t, norm_weight=np.ones(24, "float32")), ["norm.weight is unknown"]),
    (lambda t: without(t, "blocks"), ["no factors of any block"]),
    (lambda t: without(t, "head"), ["not a factor file", "head.weight"]),
    (
        lambda t: replaced(t, FacTv_weight=t["FacTv.weight"].T),
        ["FacTv.weight is (2, 24), expected (24, 2)"],
    ),
    (lambda t: replaced(t, **NO_CLASSES), ["a head of 0 classes"]),
    (lambda t: replaced(t, FacTu_weight=np.ones((0, 24), "float32")), ["not a factor file"]),
    (lambda t: replaced(t, FacTu_weight=np.ones(5, "float32")), ["not a factor file"]),
    (lambda t: replaced(t, head_bias=np.arange(7)), ["int64"]),
    (
        lambda t: replaced(t, head_bias=np.full(7, np.nan, "float32")),
        ["'head.bias'", "not finite"],
    ),
    (
        lambda t: {("" if n == "head.bias" else "module.") + n: a for n, a in t.items()},
        ["'head.bias'", "'module.'"],
    ),
    (lambda t: {**{"module." + n: a for n, a in t.items()}, **t}, ["FacTu.weight"]),
    (
        lambda t: {**t, "module.FacTu.weight": t["FacTu.weight"]},
        ["module.FacTu.weight is unknown"],
    ),
    (
        lambda t: {"blocks.0.attn.qkv.weight": np.ones((72, 24), "float32")},
        ["not a factor file", "blocks.0.attn.qkv.weight"],
    ),
]
ARGUMENTS = [
    ({}, ["--scale", "configs/tt"]),
    ({"scale": float("nan")}, ["scale is nan"]),
    ({"scale": 1.0, "method": "tk"}, ["f.pt", "'tt'", "'tk'"]),
]


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        *((change, {"scale": 1.0}, ["f.pt", *words]) for change, words in FOREIGN),
        *((lambda t: t, arguments, words) for arguments, words in ARGUMENTS),
    ],
)
def test_pytorch_files_that_are_no_factors_are_refused(
    tmp_path, small_config, change, arguments, words
):
    tree = trainable(FacTTT(2), small_config)
    tensors = change(reference_tensors(FacTTT(2), tree["factors"], tree["head"]))
    (tmp_path / "f.pt").write_bytes(torch_bytes(tensors))
    with pytest.raises(UserError) as caught:
        load_factors(tmp_path / "f.pt", **arguments)
    for word in words:
        assert word in str(caught.value)
