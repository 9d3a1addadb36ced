"""Files of the newer kinds of ViTs: names, settings beside them, and what is refused."""

import json

import jax
import numpy as np
import pytest
from backbone_kinds import KINDS, as_stored, tiny, tiny_vit
from safetensors.numpy import save_file

from fact_jax import (
    VARIANTS,
    LoRA,
    UserError,
    ViT,
    features,
    get_variant,
    load_vit,
    save_factors,
)
from fact_jax.backbone.vit import init_base
from fact_jax.files.card import Card
from fact_jax.files.folder import write_folder
from fact_jax.files.kinds import kind_of
from fact_jax.files.load import load_factors
from fact_jax.files.metadata import flat
from fact_jax.files.model_folder import hugging_face_files, timm_files
from fact_jax.files.peft_writing import naming_of
from fact_jax.serving.export import npz_file, torch_file

every_kind = pytest.mark.parametrize("kind", KINDS)
TITLES = {
    "registers": "Hugging Face Dinov2",
    "rope": "Hugging Face DINOv3",
    "rope_gated": "Hugging Face DINOv3",
    "clip": "Hugging Face CLIP or SigLIP",
    "siglip": "Hugging Face CLIP or SigLIP",
    "so400m": "Hugging Face CLIP or SigLIP",
    "beit": "Hugging Face BEiT",
}


@pytest.fixture
def stored(request, tmp_path, monkeypatch):
    """A folder with a kind's tensors, and the tiny variant "of_the_test"."""
    kind = request.param
    save_file(as_stored(tiny_vit(kind)[1], TITLES[kind]), tmp_path / "model.safetensors")
    monkeypatch.setitem(VARIANTS, "of_the_test", tiny(kind))
    return tmp_path


def of(*kinds):
    return pytest.mark.parametrize("stored", kinds, indirect=True)


@of(*KINDS)
def test_the_layout_s_names_give_the_parameters(stored, request):
    kind = request.node.callspec.params["stored"]
    eps = tiny(kind).layer_norm_eps
    model, base = load_vit("of_the_test", stored, layer_norm_eps=eps)
    expected = flat(tiny_vit(kind)[1])
    read = flat(base)
    assert read.keys() == expected.keys()
    for name, value in read.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert model.config == tiny(kind)


@of("rope", "clip")
def test_missing_biases_are_zero_where_the_kind_has_none(stored):
    path = stored / "model.safetensors"
    _, whole = load_vit("of_the_test", stored)
    kind = "rope" if whole.get("registers") is not None else "clip"
    lacking = {"rope": ".attention.k_proj.bias", "clip": "patch_embedding.bias"}[kind]
    tensors = {
        k: v
        for k, v in as_stored(tiny_vit(kind)[1], TITLES[kind]).items()
        if not k.endswith(lacking)
    }
    save_file(tensors, path)
    _, base = load_vit("of_the_test", stored)
    for name, value in flat(base).items():
        np.testing.assert_array_equal(value, flat(whole)[name])
    other = {"rope": ".attention.v_proj.bias", "clip": "post_layernorm.bias"}[kind]
    save_file({k: v for k, v in tensors.items() if not k.endswith(other)}, path)
    with pytest.raises(UserError, match="holds no tensor"):
        load_vit("of_the_test", stored)


@of("clip")
def test_config_json_chooses_the_function_and_is_checked(stored):
    vision = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 3}
    texts = {"vision_config": vision, "text_config": {"hidden_act": "quick_gelu"}}
    (stored / "config.json").write_text(json.dumps(texts))
    config = load_vit("of_the_test", stored)[0].config
    assert (config.gelu, config.layer_norm_eps) == ("exact", 1e-6)
    texts["vision_config"] = {**vision, "num_attention_heads": 4}
    (stored / "config.json").write_text(json.dumps(texts))
    with pytest.raises(UserError, match="says 4 attention heads; the variant has 3"):
        load_vit("of_the_test", stored)


@of("rope")
def test_other_rotations_are_refused(stored):
    (stored / "config.json").write_text(json.dumps({"rope_theta": 10000.0}))
    with pytest.raises(UserError, match=r"rope_theta is 10000\.0; known here: 100\.0"):
        load_vit("of_the_test", stored)


@of("siglip")
def test_a_file_of_another_kind_is_named(stored, monkeypatch):
    monkeypatch.setitem(VARIANTS, "of_the_test", tiny("clip"))
    words = "with an attention pooling head, no class token; .*expected .*a norm before its blocks"
    with pytest.raises(UserError, match=words):
        load_vit("of_the_test", stored)


@of("beit")
def test_pooling_by_the_mean_is_no_matter_of_tensors_and_attention_is(stored):
    model, base = load_vit("of_the_test", stored, pooling="class")
    assert model.config.pooling == "class"
    images = np.zeros((1, 16, 16, 3), "f4")
    mean = load_vit("of_the_test", stored)[0]
    assert np.abs(features(model, base, images) - features(mean, base, images)).max() > 0.01
    with pytest.raises(UserError, match="pooling=attention does not fit the weights"):
        load_vit("of_the_test", stored, pooling="attention")


@of("siglip")
def test_naflex_is_named(stored):
    tensors = as_stored(tiny_vit("siglip")[1], TITLES["siglip"])
    kernel = tensors["embeddings.patch_embedding.weight"]
    tensors["embeddings.patch_embedding.weight"] = kernel.reshape(len(kernel), -1)
    save_file(tensors, stored / "model.safetensors")
    with pytest.raises(UserError, match="NaFlex"):
        load_vit("of_the_test", stored)


# Libraries that a kind is written for.
WRITTEN = {"registers": ("hf", "timm"), "beit": ("hf", "timm")}
WRITTEN |= {kind: ("timm",) for kind in ("rope", "rope_gated", "clip", "siglip", "so400m")}


@every_kind
def test_what_other_code_does_not_know_is_refused_or_told(kind, tmp_path):
    model, base = tiny_vit(kind)
    assert isinstance(model, ViT)
    config, card = model.config, Card("t", "m", (), "p", "b", {})
    words = f"This ViT has .*{kind_of(config)[-1]}"
    writers = {"hf": hugging_face_files, "timm": timm_files}
    for to, names in (("hf", "transformers5"), ("timm", "timm")):
        if to in WRITTEN.get(kind, ()):
            assert writers[to](config, base, {}, card)
            if (kind, to) == ("beit", "timm"):
                with pytest.raises(UserError, match="would have no effect"):
                    naming_of(names, config)
            else:
                assert naming_of(names, config)
            continue
        with pytest.raises(UserError, match=words):
            writers[to](config, base, {}, card)
        with pytest.raises(UserError, match=words):
            naming_of(names, config)
    method = LoRA(2)
    factors = {k: np.ones(v.shape, "f4") for k, v in method.init(jax.random.key(0), config).items()}
    head = {"kernel": np.ones((24, 2), "f4"), "bias": np.ones(2, "f4")}
    save_factors(tmp_path / "t.safetensors", method, factors, head, config)
    task = load_factors(tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="PyTorch code of FacT knows plain ViTs"):
        torch_file(task)
    with pytest.warns(UserWarning, match="only fact-jax reads it"):
        assert npz_file(config, base, task)


def with_biases(base):
    """The parameters with biases that the published models lack, as some methods train them."""
    base, rng = jax.tree.map(np.array, base), np.random.default_rng(1)
    attention = base["Transformer"]["encoderblock"]["MultiHeadDotProductAttention_1"]
    for module in (base["embedding"], attention["key"]):
        module["bias"] = rng.normal(size=module["bias"].shape).astype("f4")
    return base


@pytest.mark.parametrize(
    ("kind", "to"), [(k, to) for k in ("rope", "rope_gated", "clip", "beit") for to in WRITTEN[k]]
)
def test_biases_that_the_published_model_lacks_are_not_lost(kind, to, tmp_path, monkeypatch):
    model, base = tiny_vit(kind)
    biased = with_biases(base)
    write = {"hf": hugging_face_files, "timm": timm_files}[to]
    write_folder(
        tmp_path / "out", write(model.config, biased, {}, Card("t", "m", (), "p", "b", {}))
    )
    monkeypatch.setitem(VARIANTS, "of_the_test", model.config)
    eps = model.config.layer_norm_eps
    again, read = load_vit("of_the_test", tmp_path / "out", layer_norm_eps=eps)
    images = np.random.default_rng(2).normal(size=(2, 16, 16, 3)).astype("f4")
    expected, found = features(model, biased, images), features(again, read, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    moved = np.abs(expected - features(model, base, images)).max()
    assert moved > 0.01  # also by the patches' bias of BEiT


@pytest.mark.parametrize("kind", ["rope", "rope_gated"])
def test_biases_of_queries_and_values_are_read_again(kind, tmp_path, monkeypatch):
    model, base = tiny_vit(kind)
    files = timm_files(model.config, base, {}, Card("t", "m", (), "p", "b", {}))
    write_folder(tmp_path / "out", files)
    monkeypatch.setitem(VARIANTS, "of_the_test", model.config)
    _, read = load_vit("of_the_test", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, dict(read), dict(base))


def test_the_width_of_the_mlp_is_the_one_that_timm_and_transformers_compute():
    """Both take the whole part of the width times a ratio."""
    card = Card("t", "m", (), "p", "b", {})
    config = get_variant("vit_s16").replace(width=448, num_heads=4, mlp_dim=976, depth=1)
    base = init_base(config, jax.random.key(0))
    settings = json.loads(timm_files(config, base, {}, card)["config.json"])
    assert int(448 * settings["model_args"]["mlp_ratio"]) == 976
    config = config.replace(layer_scale=True)
    with pytest.raises(UserError, match="mlp_dim 976 and width 448"):
        hugging_face_files(config, init_base(config, jax.random.key(0)), {}, card)


@every_kind
@pytest.mark.parametrize("bits", [None, (8, 8)])
def test_a_factor_file_remembers_the_kind(kind, bits, tmp_path):
    config, method = tiny(kind), LoRA(2)
    factors = {k: np.ones(v.shape, "f4") for k, v in method.init(jax.random.key(0), config).items()}
    head = {"kernel": np.ones((24, 2), "f4"), "bias": np.ones(2, "f4")}
    save_factors(tmp_path / "t.safetensors", method, factors, head, config, bits)
    task = load_factors(tmp_path / "t.safetensors")
    assert task.metadata["vit"] == {k: getattr(config, k) for k in task.metadata["vit"]}
    assert task.metadata["vit"]["registers"] == config.registers
