"""Reading, writing and fetching `.npz` weights."""

import re

import jax
import numpy as np
import pytest
import requests
from safetensors.numpy import save_file
from weight_layouts import hf_vit

from fact_jax import UserError, features, get_variant, load_vit
from fact_jax.backbone.vit import init_base
from fact_jax.files import download, weights

VARIANT = "vit_ti16"


@pytest.fixture(scope="module")
def base():
    return init_base(get_variant(VARIANT), jax.random.key(0))


def dinov2(base):
    """Names of Hugging Face's DINOv2: those of its ViT, but for the norms, the MLP and scales."""
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    names |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    tensors = {}
    for name, tensor in hf_vit(base).items():
        for old, new in names.items():
            name = name if "attention.output" in name else name.replace(old, new)
        tensors[name] = tensor
    blocks = base["Transformer"]["encoderblock"]
    for i, j in np.ndindex(len(blocks["LayerScale_0"]), 2):
        tensors[f"encoder.layer.{i}.layer_scale{j + 1}.lambda1"] = blocks[f"LayerScale_{j}"][i]
    return {**tensors, "embeddings.mask_token": np.ones((1, base["cls"].size), np.float16)}


@pytest.fixture(scope="module")
def npz(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "ti.npz"
    weights.write_npz(path, get_variant(VARIANT), base)
    return path


def with_changes(npz, target, **changes):
    """A copy of the file; `Transformer__cls=x` sets an array, None drops it."""
    with np.load(npz) as arrays:
        content = dict(arrays) | {name.replace("__", "/"): a for name, a in changes.items()}
    np.savez(target, **{name: a for name, a in content.items() if a is not None})
    return target


def test_both_generations_give_the_same_parameters(npz, tmp_path, base):
    """The older files add a pre_logits layer and both a head; FacT's code drops them."""
    older = with_changes(
        npz,
        tmp_path / "older.npz",
        pre_logits__kernel=np.ones((192, 192), np.float32),
        pre_logits__bias=np.ones(192, np.float32),
        head__kernel=np.ones((192, 21843), np.float32),
        head__bias=np.ones(21843, np.float32),
    )
    for path in (npz, older):
        model, read = load_vit(VARIANT, path)
        jax.tree.map(np.testing.assert_array_equal, read, base)
        assert (model.config.gelu, model.config.layer_norm_eps) == ("exact", 1e-6)


def test_a_table_of_another_image_size_is_kept_and_known(npz, tmp_path):
    table = {"Transformer__posembed_input__pos_embedding": np.ones((1, 577, 192), np.float32)}
    model, base = load_vit(VARIANT, with_changes(npz, tmp_path / "384.npz", **table))
    assert model.config.image_size == 384
    assert base["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, 577, 192)


BLOCK = "Transformer__encoderblock_7__"
QUERY = f"{BLOCK}MultiHeadDotProductAttention_1__query__kernel"


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (f"{BLOCK}MlpBlock_3__Dense_1__kernel", None, "no tensor '{name}'"),
        (
            f"{BLOCK}MlpBlock_3__Dense_1__kernel",
            np.ones((192, 768)),
            "is [192, 768]; expected [768, 192]",
        ),
        # Heads cut otherwise hold the same numbers in another order of attention.
        (QUERY, np.ones((192, 6, 32)), "expected [192, 3, 64]"),
        ("cls", np.array([{"a": 1}], dtype=object), "'cls.npy' holds pickled Python objects"),
    ],
)
def test_wrong_arrays_are_named(npz, tmp_path, name, array, words):
    path = with_changes(npz, tmp_path / "wrong.npz", **{name: array})
    with pytest.raises(UserError, match=re.escape(words.format(name=name.replace("__", "/")))):
        load_vit(VARIANT, path)


def test_wrong_files_are_refused_in_a_paragraph(npz, tmp_path):
    content = bytearray(npz.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(content)
    (tmp_path / "truncated.npz").write_bytes(content[:1_000_000])
    (tmp_path / "text.npz").write_text("<html>404</html>")
    for path, words in (
        ("none.npz", "does not exist"),
        ("/dev/zero", "/dev/zero is a FIFO, a socket or a device"),
        ("text.npz", r"text.npz \(16 bytes\) is not a .npz"),
        ("truncated.npz", "truncated"),
        ("damaged.npz", "damaged"),
    ):
        with pytest.raises(UserError, match=words):
            load_vit(VARIANT, tmp_path / path)


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


def test_dinov2_safetensors_are_read(tmp_path):
    """The file has the names of transformers' Dinov2Model, and half precision."""
    config = get_variant("dinov2_s14").replace(image_size=518)
    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float16), structs)
    path, tensors = tmp_path / "dinov2.safetensors", dinov2(base)
    save_file(tensors, path)
    model, read = load_vit("dinov2_s14", path)
    assert model.config.image_size == 518
    jax.tree.map(np.testing.assert_array_equal, read, base)
    assert features(model, read, np.zeros((1, 98, 98, 3), np.float32)).shape == (1, 384)
    with pytest.raises(UserError, match="expected"):
        load_vit("dinov2_b14", path)
    del tensors["layernorm.bias"]
    save_file(tensors, path)
    with pytest.raises(UserError, match="no tensor 'layernorm.bias'"):
        load_vit("dinov2_s14", path)


def test_written_files_have_the_published_names_and_shapes(tmp_path):
    """Names of google-research/vision_transformer's ImageNet-21k checkpoints.

    timm 0.4.12's `_load_weights` asks for head/bias without a condition, and takes a head only if
    it has as many classes as the model, which one of a class never has.
    """
    shapes = {
        "cls": (1, 1, 128),
        "embedding/kernel": (8, 8, 3, 128),
        "embedding/bias": (128,),
        "Transformer/posembed_input/pos_embedding": (1, 17, 128),
        "Transformer/encoder_norm/scale": (128,),
        "Transformer/encoder_norm/bias": (128,),
        "head/kernel": (128, 1),
        "head/bias": (1,),
    }
    for i in range(6):
        block = f"Transformer/encoderblock_{i}/"
        attention = f"{block}MultiHeadDotProductAttention_1/"
        norms = [f"{block}LayerNorm_{n}/{leaf}" for n in (0, 2) for leaf in ("scale", "bias")]
        shapes |= dict.fromkeys(norms, (128,))
        for name in ("query", "key", "value"):
            shapes |= {
                f"{attention}{name}/kernel": (128, 4, 32),
                f"{attention}{name}/bias": (4, 32),
            }
        shapes |= {f"{attention}out/kernel": (4, 32, 128), f"{attention}out/bias": (128,)}
        for n, (rows, columns) in enumerate(((128, 512), (512, 128))):
            dense = f"{block}MlpBlock_3/Dense_{n}/"
            shapes |= {f"{dense}kernel": (rows, columns), f"{dense}bias": (columns,)}
    model, base = load_vit("vit_mini")
    weights.write_npz(tmp_path / "plain.npz", model.config, base)
    head = {"kernel": np.ones((128, 3), "float32"), "bias": np.ones(3, "float32")}
    weights.write_npz(tmp_path / "task.npz", model.config, {**base, "head": head})
    with np.load(tmp_path / "plain.npz") as plain, np.load(tmp_path / "task.npz") as task:
        assert {name: plain[name].shape for name in plain} == shapes
        assert set(task) == set(plain)
        assert not plain["head/kernel"].any()
        assert not plain["head/bias"].any()
        np.testing.assert_array_equal(task["head/bias"], head["bias"])
    again = load_vit("vit_mini", tmp_path / "plain.npz")[1]
    assert weights.checksum(again) == weights.checksum(base)
