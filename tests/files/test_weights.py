"""Reading, writing and fetching `.npz` weights."""

import re

import jax
import numpy as np
import pytest
import requests
from safetensors.numpy import save_file

from fact_jax import UserError, features, get_variant, load_vit
from fact_jax.backbone.vit import init_base
from fact_jax.files import download, weights

VARIANT = "vit_ti16"


@pytest.fixture(scope="module")
def base():
    return init_base(get_variant(VARIANT), jax.random.key(0))


@pytest.fixture(scope="module")
def npz(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ti.npz"
    weights.write_npz(path, get_variant(VARIANT), base)
    return path


def with_changes(npz, target, *, add=None, drop=(), replace=None):
    with np.load(npz) as arrays:
        content = {k: arrays[k] for k in arrays if k not in drop}
    np.savez(target, **{**content, **(add or {})})
    return target


def test_names_and_shapes_are_the_published_ones(npz):
    """The list of google-research/vision_transformer's ImageNet-21k checkpoints, for Ti/16."""
    with np.load(npz) as arrays:
        shapes = {k: arrays[k].shape for k in arrays}
    block = "Transformer/encoderblock_11/"
    attention = block + "MultiHeadDotProductAttention_1/"
    expected = {
        "cls": (1, 1, 192),
        "embedding/kernel": (16, 16, 3, 192),
        "embedding/bias": (192,),
        "Transformer/posembed_input/pos_embedding": (1, 197, 192),
        "Transformer/encoder_norm/scale": (192,),
        "Transformer/encoder_norm/bias": (192,),
        block + "LayerNorm_0/scale": (192,),
        block + "LayerNorm_2/bias": (192,),
        attention + "query/kernel": (192, 3, 64),
        attention + "key/bias": (3, 64),
        attention + "value/kernel": (192, 3, 64),
        attention + "out/kernel": (3, 64, 192),
        attention + "out/bias": (192,),
        block + "MlpBlock_3/Dense_0/kernel": (192, 768),
        block + "MlpBlock_3/Dense_1/kernel": (768, 192),
    }
    assert {k: shapes[k] for k in expected} == expected
    assert len(shapes) == 6 + 12 * 16 + 2
    assert (shapes["head/kernel"], shapes["head/bias"]) == ((192, 1), (1,))


def test_round_trip(npz, base):
    _, read = load_vit(VARIANT, npz)
    jax.tree.map(np.testing.assert_array_equal, read, base)


def test_both_generations_give_the_same_features(npz, tmp_path, base):
    """The older files add a pre_logits layer and both a head; FacT's code drops them."""
    older = with_changes(
        npz,
        tmp_path / "older.npz",
        add={
            "pre_logits/kernel": np.ones((192, 192), np.float32),
            "pre_logits/bias": np.ones(192, np.float32),
            "head/kernel": np.ones((192, 21843), np.float32),
            "head/bias": np.ones(21843, np.float32),
        },
    )
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    old_model, old_base = load_vit(VARIANT, older)
    new_model, new_base = load_vit(VARIANT, npz)
    assert jax.tree.structure(old_base) == jax.tree.structure(new_base)
    assert old_model.config.gelu == "exact"
    assert old_model.config.layer_norm_eps == 1e-6
    np.testing.assert_array_equal(
        features(old_model, old_base, images), features(new_model, new_base, images)
    )


def test_a_table_of_another_image_size_is_kept_and_known(npz, tmp_path):
    path = with_changes(
        npz,
        tmp_path / "384.npz",
        drop=["Transformer/posembed_input/pos_embedding"],
        add={"Transformer/posembed_input/pos_embedding": np.ones((1, 577, 192), np.float32)},
    )
    model, base = load_vit(VARIANT, path)
    assert model.config.image_size == 384
    assert base["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, 577, 192)


def test_wrong_files_are_refused_in_a_paragraph(npz, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_vit(VARIANT, tmp_path / "none.npz")
    with pytest.raises(UserError, match="/dev/zero is a FIFO, a socket or a device"):
        load_vit(VARIANT, "/dev/zero")
    text = tmp_path / "text.npz"
    text.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"text.npz \(16 bytes\) is not a .npz"):
        load_vit(VARIANT, text)
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(npz.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="truncated"):
        load_vit(VARIANT, truncated)
    damaged = tmp_path / "damaged.npz"
    content = bytearray(npz.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_vit(VARIANT, damaged)
    with pytest.raises(
        UserError, match=r"width 192 and 12 blocks.*\(vit_ti16\).*expected.*width 768"
    ):
        load_vit("vit_b16", npz)
    other = tmp_path / "other.npz"
    np.savez(other, a=np.ones(3))
    with pytest.raises(UserError, match="not a ViT in a layout known here.*it holds a"):
        load_vit(VARIANT, other)


def test_missing_and_misshapen_arrays_are_named(npz, tmp_path):
    name = "Transformer/encoderblock_7/MlpBlock_3/Dense_1/kernel"
    path = with_changes(npz, tmp_path / "missing.npz", drop=[name])
    with pytest.raises(UserError, match=re.escape(f"no tensor '{name}'")):
        load_vit(VARIANT, path)
    path = with_changes(npz, tmp_path / "shape.npz", drop=[name], add={name: np.ones((192, 768))})
    with pytest.raises(UserError, match=re.escape("is [192, 768]; expected [768, 192]")):
        load_vit(VARIANT, path)
    # Heads cut otherwise hold the same numbers in another order of attention.
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    path = with_changes(npz, tmp_path / "heads.npz", drop=[name], add={name: np.ones((192, 6, 32))})
    with pytest.raises(UserError, match=re.escape("expected [192, 3, 64]")):
        load_vit(VARIANT, path)


def test_pickled_arrays_are_not_executed(npz, tmp_path):
    path = tmp_path / "pickle.npz"
    with_changes(npz, path, drop=["cls"], add={"cls": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="'cls.npy' holds pickled Python objects"):
        load_vit(VARIANT, path)


def test_offline_the_error_says_the_url_and_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FACT_JAX_CACHE", str(tmp_path))

    def fail(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(UserError) as error:
        load_vit("vit_b16")
    url = "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"
    assert url in str(error.value)
    assert str(tmp_path / "weights" / "ViT-B_16.npz") in str(error.value)


def test_a_download_is_checked_and_kept(npz, tmp_path, monkeypatch):
    monkeypatch.setenv("FACT_JAX_CACHE", str(tmp_path))
    calls = []

    def serve(url, known_hash, fname, path, progressbar):
        calls.append(url)
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(npz.read_bytes())

    monkeypatch.setattr("pooch.retrieve", serve)
    load_vit(VARIANT)
    load_vit(VARIANT)
    assert len(calls) == 1
    assert calls[0].endswith("augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz")
    with pytest.raises(UserError, match="expected it to start with d9715d"):
        download.find_weights("vit_b16")
    assert not (tmp_path / "weights" / "ViT-B_16.npz").exists()


def dinov2_tensors(depth, width):
    """The names and shapes of transformers' Dinov2Model, random."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 37 * 37 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for i in range(depth):
        block = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes[block + f"attention.attention.{name}.weight"] = (width, width)
            shapes[block + f"attention.attention.{name}.bias"] = (width,)
        shapes[block + "attention.output.dense.weight"] = (width, width)
        shapes[block + "attention.output.dense.bias"] = (width,)
        shapes[block + "mlp.fc1.weight"] = (4 * width, width)
        shapes[block + "mlp.fc1.bias"] = (4 * width,)
        shapes[block + "mlp.fc2.weight"] = (width, 4 * width)
        shapes[block + "mlp.fc2.bias"] = (width,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[block + name] = (width,)
        for i in (1, 2):
            shapes[block + f"layer_scale{i}.lambda1"] = (width,)
    return {k: rng.normal(size=s).astype(np.float16) for k, s in shapes.items()}


def test_dinov2_safetensors_are_read(tmp_path):
    tensors = dinov2_tensors(12, 384)
    save_file(tensors, tmp_path / "dinov2.safetensors")
    model, base = load_vit("dinov2_s14", tmp_path / "dinov2.safetensors")
    assert model.config.image_size == 518
    block = base["Transformer"]["encoderblock"]
    expected = tensors["encoder.layer.5.mlp.fc1.weight"].astype(np.float32).T
    np.testing.assert_array_equal(block["MlpBlock_3"]["Dense_0"]["kernel"][5], expected)
    gains = tensors["encoder.layer.3.layer_scale2.lambda1"].astype(np.float32)
    np.testing.assert_array_equal(block["LayerScale_1"][3], gains)
    assert features(model, base, np.zeros((1, 98, 98, 3), np.float32)).shape == (1, 384)
    with pytest.raises(UserError, match="expected"):
        load_vit("dinov2_b14", tmp_path / "dinov2.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="no tensor 'layernorm.bias'"):
        load_vit("dinov2_s14", tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="is not a .npz, safetensors or PyTorch file"):
        load_vit("dinov2_s14", __file__)


def test_written_files_have_all_that_timm_0_4_12_reads(tmp_path):
    """`_load_weights` of its vision_transformer.py asks for head/bias without a condition.

    It takes a head only if it has as many classes as the model, which one of a class never has.
    """
    names = ["cls", "embedding/kernel", "embedding/bias", "head/bias"]
    names += ["Transformer/posembed_input/pos_embedding"]
    names += [f"Transformer/encoder_norm/{leaf}" for leaf in ("scale", "bias")]
    for i in range(6):
        block = f"Transformer/encoderblock_{i}/"
        names += [f"{block}LayerNorm_{n}/{leaf}" for n in (0, 2) for leaf in ("scale", "bias")]
        modules = [f"MultiHeadDotProductAttention_1/{n}" for n in ("query", "key", "value", "out")]
        modules += [f"MlpBlock_3/Dense_{n}" for n in (0, 1)]
        names += [f"{block}{module}/{leaf}" for module in modules for leaf in ("kernel", "bias")]
    model, base = load_vit("vit_mini")
    weights.write_npz(tmp_path / "plain.npz", model.config, base)
    head = {"kernel": np.ones((128, 3), "float32"), "bias": np.ones(3, "float32")}
    weights.write_npz(tmp_path / "task.npz", model.config, {**base, "head": head})
    with np.load(tmp_path / "plain.npz") as plain, np.load(tmp_path / "task.npz") as task:
        assert set(plain) == set(task) == {*names, "head/kernel"}
        assert plain["head/kernel"].shape == (128, 1)
        assert not plain["head/kernel"].any()
        assert not plain["head/bias"].any()
        np.testing.assert_array_equal(task["head/bias"], head["bias"])
    again = load_vit("vit_mini", tmp_path / "plain.npz")[1]
    assert weights.checksum(again) == weights.checksum(base)
