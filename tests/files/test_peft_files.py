"""PEFT adapters without PyTorch: written and read again, and refusals of what is not plain LoRA."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from weight_layouts import VARIANT
from written_factors import trainable

from fact_jax import AdaptFormer, FacTTK, FacTTT, Linear, LoRA, UserError, get_variant, load_factors
from fact_jax.algebra import Increments
from fact_jax.cli import push as push_module
from fact_jax.cli.arguments import say_base
from fact_jax.files import peft, peft_names
from fact_jax.files.beside import preprocessor, read_beside
from fact_jax.files.factors import TIMM, TrainedTask, to_bytes
from fact_jax.files.folder import write_folder
from fact_jax.files.peft_config import base_preprocessing, base_variant, scaling
from fact_jax.files.peft_writing import NAMES, adapter_files
from fact_jax.serving.folders import card_of
from fact_jax.tuning import DoRA


def adapter(tmp_path, method, names="transformers5", variant="vit_ti16", **metadata):
    """A written task, and the folder of its adapter."""
    config, path = get_variant(variant), tmp_path / "f.safetensors"
    entries = {"variant": variant, "task": "pets|x", **metadata}
    path.write_bytes(to_bytes(method, trainable(method, config), config, entries))
    task = load_factors(path)
    files = adapter_files(task, config, card_of(task, config, "google/x", {}), names)
    write_folder(tmp_path / "adapter", files)
    return task, tmp_path / "adapter"


def changed(folder, tensors=None, **entries):
    """Changes an adapter's config, or its tensors by a function of them."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    if tensors is not None:
        path = folder / "adapter_model.safetensors"
        save_file(tensors(load_file(path)), path)


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("variant", [VARIANT, "dinov2_s14"])
def test_an_adapter_read_again_has_the_same_increments(tmp_path, names, variant, monkeypatch):
    labels = [f"class {i}" for i in range(7)]
    entries = {"class_names": labels, "image_size": 224, "normalisation": "inception"}
    task, folder = adapter(tmp_path, FacTTK(4, 3.0), names, variant, **entries)
    again, config = load_factors(folder), get_variant(variant)
    for key, value in {**entries, "variant": variant, "task": "pets|x"}.items():
        assert again.metadata[key] == value
    assert again.config == config
    assert again.method.rank == 4
    np.testing.assert_array_equal(again.head["kernel"], task.head["kernel"])
    wanted, found = (Increments.of(t.method, t.factors, config) for t in (task, again))
    assert (wanted - found).norm < 1e-6 * wanted.norm
    card = (folder / "README.md").read_text()
    for words in ("class 6", "inception", "pets\\|x", "fact_tk", "google/x"):
        assert (words in card) is (words != "inception")  # in numbers there
    assert "mean 0.5, 0.5, 0.5" in card


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("method", "words"),
    [(AdaptFormer(), "bottlenecks.*--format hf"), (Linear(), "only a head.*--format hf")],
)
def test_tasks_that_are_no_lora_are_referred_to_merged_models(tmp_path, method, words):
    with pytest.raises(UserError, match=words):
        adapter(tmp_path, method)


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if name not in k}


def renamed(old, new):
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


def with_one(name, shape, value=0.0):
    return lambda tensors: {**tensors, name: np.full(shape, value, np.float32)}


Q0 = "base_model.model.vit.layers.0.attention.q_proj"


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("entries", "tensors", "words"),
    [
        ({"peft_type": "IA3"}, None, "'IA3'; only LORA"),
        ({"use_dora": True}, None, "has lora_A and lora_B and no norms of DoRA; expected both"),
        ({"bias": "all"}, None, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "pissa_niter_4.*changes the frozen weights"),
        ({"kasa_config": {"x": 1}}, None, "KaSA"),
        ({"r": "4"}, None, "r is '4', expected a whole number"),
        ({"lora_alpha": 1e300}, None, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 4}}, None, r"alpha_pattern has the expression '\(a\+\)\+\$'"),
        ({}, without("classifier"), "no head"),
        ({}, without("layers.1.mlp.fc1.lora_B"), "fc1.lora_B.weight is missing"),
        ({}, renamed("vit.layers", "swin.encoder.layer"), "swin.encoder.layer.*no dense layer"),
        ({}, renamed("vit.layers", "model.layers"), "no dense layer of a model known here"),
        ({}, renamed("layers.2", "layers.700"), "701 blocks"),
        (
            {},
            with_one(f"{Q0}.lora_magnitude_vector", 192),
            "has lora_A and lora_B and no norms of DoRA",
        ),
        (
            {},
            with_one("base_model.model.vit.layernorm.weight", 192),
            "neither a LoRA pair of a dense layer nor",
        ),
        ({}, with_one(f"{Q0}.lora_A.weight", (5, 192)), "lora_A .5, 192. and lora_B .192, 4."),
        ({}, with_one(f"{Q0}.lora_A.weight", (4, 190)), "expected .4, 192."),
        ({}, with_one(f"{Q0}.lora_A.weight", (4, 192), np.inf), "not finite"),
        (
            {},
            with_one("base_model.model.classifier.weight", (6, 192)),
            "classifier.bias.*expected numbers of shape .6.",
        ),
    ],
)
def test_what_is_no_plain_lora_of_a_vit_is_refused(tmp_path, entries, tensors, words):
    _, folder = adapter(tmp_path, FacTTT(4, 1.0), class_names=[*"abcdefg"])
    changed(folder, tensors, **entries)
    with pytest.raises(UserError, match=words) as caught:
        load_factors(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.usefixtures("three_blocks")
def test_ranks_beyond_any_vit_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    _, folder = adapter(tmp_path, FacTTT(4, 1.0))
    monkeypatch.setattr(peft, "MAX_NUMBERS", 10_000)
    with pytest.raises(UserError, match="rank 4 in 3 blocks is larger than any ViT's"):
        load_factors(folder)


def test_scalings_follow_peft():
    """rank_pattern is in the tensors' shapes; the first pattern that fits gives alpha."""
    config = {"lora_alpha": 8, "alpha_pattern": {"^vit.layers.1.q": 1, "layers.0.q": 4, "v": 2}}
    assert scaling(config, "vit.layers.0.q", 4) == 1
    assert scaling(config, "vit.layers.1.q", 2) == 0.5
    assert scaling(config, "vit.layers.1.v", 2) == 1
    assert scaling(config, "vit.layers.10.q", 4) == 2
    assert scaling(config, "x.vit.layers.1.q", 4) == 2
    assert scaling({"lora_alpha": 3, "use_rslora": True}, "q", 9) == 1


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("google/vit-base-patch16-224-in21k", "vit_b16"),
        ("/models/vit-large-patch32-384", "vit_l32"),
        ("timm/vit_small_patch32_224.augreg_in21k", "vit_s32"),
        ("facebook/deit-tiny-patch16-224", "vit_ti16"),
        ("facebook/dinov2-base", "dinov2_b14"),
        ("facebook/vit-mae-base", "mae_b16"),
        ("facebook/dinov2-with-registers-large", "dinov2_l14_reg"),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", "dinov3_s16plus"),
        ("facebook/dinov3-vit7b16-pretrain-lvd1689m", None),
        ("facebook/dinov2-giant", None),
        ("microsoft/beit-base-patch16-224-pt22k-ft22k", "beit_b16"),
        ("timm/vit_large_patch16_384.orig_in21k_ft_in1k", "vit_l16"),
        ("timm/vit_base_patch16_224_in21k", "vit_b16"),
        ("timm/deit_base_patch16_384.fb_in1k", "vit_b16"),
        ("timm/vit_base_patch16_clip_224.openai", None),
        ("timm/vit_base_patch16_dinov3.lvd1689m", None),
        ("timm/vit_base_patch16_siglip_224.webli", None),
        ("timm/vit_base_patch16_224.dino", None),
        ("timm/vit_base_patch16_224.mae", None),
        ("microsoft/swin-base-patch4-window7-224", None),
        ("google/vit-base-patch9-224", None),
        (None, None),
    ],
)
def test_base_models_are_known_by_their_names(name, variant):
    assert base_variant(name) == variant


def test_nothing_is_concluded_of_the_preparation_from_names_of_other_weights():
    assert base_preprocessing("timm/vit_base_patch16_clip_224.openai") == {}
    assert base_preprocessing("timm/vit_base_patch16_224.dino") == {"image_size": 224}
    known = {"normalisation": "inception", "image_size": 384}
    assert base_preprocessing("timm/vit_base_patch16_384_in21k") == known


def restated(folder, name, **entries):
    """Changes a JSON file beside an adapter."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("fact_jax.json", {"image_size": 4096}, "65,536 patches of 16 pixels"),
        ("fact_jax.json", {"normalisation": "bogus"}, "normalisation is 'bogus'"),
        ("fact_jax.json", {"resize": "bogus"}, "resize is 'bogus'"),
        ("preprocessor_config.json", {"size": 4096}, "65,536 patches"),
        (
            "adapter_config.json",
            {"base_model_name_or_path": "a/vit-tiny-patch16-4096"},
            "image_size is 4096",
        ),
    ],
)
def test_images_beyond_the_limits_of_factor_files_are_refused(tmp_path, name, entries, words):
    _, folder = adapter(tmp_path, FacTTT(4, 1.0))
    restated(folder, name, **entries)
    if name != "fact_jax.json":
        (folder / "fact_jax.json").unlink()
    if name == "adapter_config.json":
        (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=words):
        load_factors(folder)


SQUARE_224, SQUARE_256 = ({"height": side, "width": side} for side in (224, 256))


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"size": SQUARE_224, "crop_size": 256}, {"image_size": 224}),
        ({"size": 224, "do_center_crop": False, "crop_size": SQUARE_256}, {"image_size": 224}),
        (
            {"size": SQUARE_256, "do_center_crop": True, "crop_size": SQUARE_224},
            {"image_size": 224, "resize": "crop"},
        ),
        ({"size": 224, "do_center_crop": True, "crop_size": 224}, {"image_size": 224}),
        ({"size": {"shortest_edge": 224}}, {}),
        ({"size": {"height": 224, "width": 448}}, {}),
    ],
)
def test_the_crop_counts_where_the_processor_crops(tmp_path, entries, found):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(entries))
    assert read_beside(tmp_path, 2) == found


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (384, {"image_size": 224}),
        ({"shortest_edge": 224}, {"image_size": 224}),
        ({"shortest_edge": 256}, {"image_size": 224, "resize": "crop"}),
    ],
)
def test_other_ways_to_resize_are_told(tmp_path, size, found):
    entries = {"size": size, "do_center_crop": True, "crop_size": SQUARE_224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="takes the middle 224 pixels"):
        assert read_beside(tmp_path, 2) == found


@pytest.mark.usefixtures("three_blocks")
def test_an_adapter_without_our_file_is_known_by_its_base_model(tmp_path):
    _, folder = adapter(tmp_path, FacTTT(4, 1.0))
    (folder / "fact_jax.json").unlink()
    changed(folder, base_model_name_or_path="google/vit-tiny-patch16-224")
    task = load_factors(folder)
    assert task.metadata["variant"] == "vit_ti16"
    assert task.metadata["normalisation"] == "imagenet"  # of its preprocessor_config.json
    assert task.config.layer_norm_eps == 1e-12
    (folder / "preprocessor_config.json").unlink()
    assert load_factors(folder).metadata["normalisation"] == "inception"
    changed(folder, base_model_name_or_path="someone/else")
    task = load_factors(folder)
    assert task.metadata["vit"]["mlp_dim"] == 768
    with pytest.raises(UserError, match="does not say its ViT"):
        _ = task.config


def test_a_folder_with_one_factor_file_is_that_file(tmp_path):
    config = get_variant("vit_mini")
    content = to_bytes(FacTTT(2, 1.0), trainable(FacTTT(2, 1.0), config), config, {})
    (tmp_path / "a.safetensors").write_bytes(content)
    assert load_factors(tmp_path).path == tmp_path / "a.safetensors"
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="folder of 2 factor files"):
        load_factors(tmp_path)


def test_names_of_two_models_are_not_mixed():
    with pytest.raises(UserError, match="no dense layer of a model known here"):
        peft_names.find_naming(["vit.layers.0.mlp.fc1", "vit.encoder.layer.0.output.dense"])


def test_a_task_of_cropped_pictures_says_both_sizes():
    stated = preprocessor({"resize": "crop", "image_size": 224}, 518)
    assert stated["size"] == {"height": 256, "width": 256}
    assert (stated["do_center_crop"], stated["crop_size"]) == (True, {"height": 224, "width": 224})
    assert preprocessor({"image_size": 224}, 518)["size"] == {"height": 224, "width": 224}


@pytest.mark.usefixtures("three_blocks")
def test_dora_is_read_again_and_needs_the_norms_of_all_blocks(tmp_path):
    task, folder = adapter(tmp_path, DoRA(4, 2.0), class_names=[*"abcdefg"])
    again = load_factors(folder)
    assert (again.method.rank, again.method.sites) == (4, "q,v")
    np.testing.assert_array_equal(again.factors["norms_v"], task.factors["norms_v"])
    changed(folder, without("layers.1."))
    with pytest.raises(UserError, match="its norms_q are not those of all 3 blocks"):
        load_factors(folder)


@pytest.mark.usefixtures("three_blocks")
def test_dora_of_some_of_timm_s_fused_layers_is_refused(tmp_path):
    with pytest.raises(UserError, match="columns of q, v, and PEFT's DoRA sets .*, qkv. Export"):
        adapter(tmp_path, DoRA(4), "timm")


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (with_one(f"{Q0}.lora_magnitude_vector", 191), r"is \[191\]; expected \[192\]"),
        (with_one(f"{Q0}.lora_magnitude_vector.default.weight", 192), "layers.0.* twice"),
        (without("q_proj.lora_magnitude"), "q_proj has lora_A and lora_B and no norms"),
        (
            with_one(f"{Q0.replace('q_proj', 'k_proj')}.lora_magnitude_vector", 192),
            "k_proj has norms of DoRA and no lora_A",
        ),
    ],
)
def test_damaged_norms_of_dora_are_refused(tmp_path, tensors, words):
    _, folder = adapter(tmp_path, DoRA(4), class_names=[*"abcdefg"])
    changed(folder, tensors)
    with pytest.raises(UserError, match=words):
        load_factors(folder)


def test_an_adapter_of_an_unknown_base_leaves_the_forward_pass_to_its_variant():
    """timm's plain ViT is not its base, so that its GELU and epsilon say nothing."""
    head = {"kernel": np.zeros((8, 3), np.float32), "bias": np.zeros(3, np.float32)}
    stated = {"base_model": "me/dinov3", "vit": {"width": 8, "depth": 2}}
    assert TrainedTask(LoRA(2), {}, head, stated, Path("a")).forward_settings == {}
    stated["vit"]["gelu"] = "silu"
    assert TrainedTask(LoRA(2), {}, head, stated, Path("a")).forward_settings == {"gelu": "silu"}
    released = {"vit": {"width": 8, "depth": 2}}  # a file of FacT's PyTorch code
    assert TrainedTask(LoRA(2), {}, head, released, Path("a")).forward_settings == TIMM


def test_what_an_adapter_was_trained_on_is_said_where_no_weights_are_given(capsys):
    task = TrainedTask(LoRA(2), {}, {}, {"base_model": "me/vit"}, Path("adapter"))
    say_base(task, None)
    assert "adapter was trained on me/vit" in (said := capsys.readouterr().err)
    assert "--weights hf:me/vit" in said
    say_base(task, "hf:me/vit")
    say_base(task._replace(metadata={**task.metadata, "weights_sha256": "a" * 64}), None)
    say_base(None, None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["task.pt", "adapter"])
def test_files_of_other_code_are_not_pushed_as_ours(tmp_path, monkeypatch, name):
    task = TrainedTask(LoRA(2), {}, {}, {"base_model": "me/vit"}, tmp_path / name)
    monkeypatch.setattr(push_module, "load_factors", lambda path: task)
    with pytest.raises(UserError, match=f"{name} is a file of other code.*--variant VARIANT"):
        push_module.card_text(str(tmp_path / name), "", "me/task")
