"""Folders of merged models, opened by transformers' pipeline and by timm."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import torch_models
from PIL import Image
from stored.cases import random_base
from written_factors import trainable

from fact_jax import SSF, FacTTT, Predictor, ViTConfig, load_factors
from fact_jax.backbone.merging import merge
from fact_jax.backbone.parameters import MAP_HEAD
from fact_jax.backbone.vit import ViT, features
from fact_jax.files.factors import to_bytes
from fact_jax.files.folder import write_folder
from fact_jax.files.peft_writing import adapter_files
from fact_jax.images.normalise import normalise
from fact_jax.images.pipeline import decode
from fact_jax.serving.folders import WRITERS, card_of, merged_base
from fact_jax.training.metrics import probabilities

torch_models.import_timm()
import peft  # noqa: E402
import timm  # noqa: E402
import transformers  # noqa: E402

SMALL = ViTConfig(64, 3, 4, 256, 16, 32, layer_norm_eps=1e-5, gelu="tanh", precision="highest")
DINO = SMALL.replace(layer_scale=True, patch_size=8, layer_norm_eps=1e-6, gelu="exact")
DINO3 = DINO.replace(registers=4, positions="rope", key_bias=False, layer_norm_eps=1e-5)
CONFIGS = {
    "vit": SMALL,
    "dinov2": DINO,
    "registers": DINO.replace(registers=4, table_resize="antialias"),
    "beit": DINO.replace(
        positions="relative", key_bias=False, pooling="mean", image_size=48, layer_norm_eps=1e-12
    ),
    "rope": DINO3,
    "rope_gated": DINO3.replace(mlp="gated", gelu="silu"),
    "clip": SMALL.replace(pre_norm=True, patch_bias=False, gelu="quick"),
    "siglip": SMALL.replace(class_token=False, pooling="attention", layer_norm_eps=1e-6),
}
LABELS = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def folder(tmp_path, request, monkeypatch):
    """A merged model in a folder; the task's pictures are larger than the ViT's own."""
    name, to = request.param
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cropped = name == "cropped"  # a task of several labels that saw the middle of larger squares
    config = CONFIGS["vit" if cropped else name]
    if to == "timm" and name in ("vit", "beit", "cropped"):
        config = config.replace(layer_norm_eps=1e-6)
    base, method = random_base(config, 0), FacTTT(4, 3.0)
    if not config.patch_bias:
        base["embedding"]["bias"] = np.zeros(config.width, "float32")
    if not config.key_bias:
        attention = base["Transformer"]["encoderblock"]["MultiHeadDotProductAttention_1"]
        attention["key"]["bias"] = np.zeros((config.depth, config.width), "float32")
    if MAP_HEAD in base:  # `random_base` makes what is outside of the blocks small
        base[MAP_HEAD] = jax.tree.map(lambda x: 300 * x, base[MAP_HEAD])
    tree = trainable(method, config, len(LABELS))
    tree["factors"] = {k: 0.3 * v for k, v in tree["factors"].items()}
    path = tmp_path / "f.safetensors"
    entries = {"class_names": LABELS, "image_size": 48, "normalisation": "inception"}
    if cropped:
        entries |= {"resize": "crop", "multi_label": True}
    path.write_bytes(to_bytes(method, tree, config, entries))
    task = load_factors(path)
    merged = merged_base(config, base, task)
    card = card_of(task, config, "", {})
    write_folder(tmp_path / "out", WRITERS[to](config, merged, task.metadata, card))
    return config, base, task, tmp_path / "out"


def pictures(folder):
    """Pictures with edges and gradients, neither square nor of the network's size."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(4):
        blocks = rng.integers(0, 200, (7, 9, 3)).repeat(16, 0).repeat(16, 1)
        pixels = (blocks + np.arange(144)[None, :, None] % 56).astype(np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def ours(config, base, task, paths):
    way = task.metadata.get("resize", "square")
    images = np.stack([decode(path, 48, resize=way) for path in paths])
    normalised = np.asarray(normalise(images, "inception"))
    logits = Predictor(ViT(config), base, task).logits(normalised)
    frozen = task._replace(factors={k: np.zeros_like(v) for k, v in task.factors.items()})
    before = Predictor(ViT(config), base, frozen).logits(normalised)
    assert np.abs(logits - before).max() > 0.1 * np.abs(logits).max()
    return normalised, logits


@pytest.mark.parametrize(
    "folder", [(n, "hf") for n in (*list(CONFIGS)[:4], "cropped")], indirect=True
)
def test_the_pipeline_gives_our_labels_and_probabilities(folder, tmp_path, compare):
    config, base, task, path = folder
    images, logits = ours(config, base, task, pictures(tmp_path))
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    pipeline = transformers.pipeline("image-classification", str(path), image_processor=processor)
    answers = pipeline([str(p) for p in pictures(tmp_path)], top_k=5)
    scores = [{a["label"]: a["score"] for a in row} for row in answers]
    theirs = np.array([[row[label] for label in LABELS] for row in scores])
    expected = probabilities(logits, task.multi_label)
    compare({"probabilities": theirs}, {"probabilities": expected}, 1e-4)
    with torch.no_grad():
        out = pipeline.model(torch_models.nchw(images)).logits.numpy()
    compare({"logits": out}, {"logits": logits}, 1e-4)
    plain = transformers.pipeline("image-classification", str(path))
    # By default it resizes with torchvision, whose pixels differ by a level here and there.
    for row, expected in zip(plain([str(p) for p in pictures(tmp_path)]), answers, strict=True):
        assert row[0]["label"] == expected[0]["label"]
        assert abs(row[0]["score"] - expected[0]["score"]) < 0.01


@pytest.mark.parametrize("folder", [(n, "timm") for n in (*CONFIGS, "cropped")], indirect=True)
def test_timm_gives_our_logits_of_our_pictures(folder, tmp_path, compare):
    config, base, task, path = folder
    images, logits = ours(config, base, task, pictures(tmp_path))
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        out = model(torch_models.nchw(images)).numpy()
    compare({"logits": out}, {"logits": logits}, 1e-4)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
    pixels = np.stack([transform(Image.open(p)).numpy() for p in pictures(tmp_path)])
    np.testing.assert_allclose(pixels, images.transpose(0, 3, 1, 2), atol=1e-5)
    assert model.pretrained_cfg["label_names"] == LABELS


@pytest.mark.parametrize("name", ["rope", "rope_gated", "clip", "beit"])
def test_biases_that_a_published_model_lacks_reach_timm(name, tmp_path, compare):
    """SSF shifts the patches and the keys, also where the model's own layers have no bias."""
    config = CONFIGS[name]
    if name == "beit":
        config = config.replace(layer_norm_eps=1e-6)
    base, method, rng = random_base(config, 0), SSF(), np.random.default_rng(3)
    factors = trainable(method, config)["factors"]
    factors = {k: np.float32(k.endswith("scale")) + 0.3 * v for k, v in factors.items()}
    merged = merge(base, method.adaptation(factors, config))
    images = rng.normal(size=(2, config.image_size, config.image_size, 3)).astype("f4")
    expected = np.asarray(features(ViT(config), merged, images))
    head = {"kernel": np.eye(config.width, dtype="f4"), "bias": np.zeros(config.width, "f4")}
    card = card_of(None, config, "", {})
    write_folder(tmp_path / "out", WRITERS["timm"](config, {**merged, "head": head}, {}, card))
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        found = model(torch_models.nchw(images)).numpy()
    compare({"features": found}, {"features": expected}, 1e-4)


NOT_BEIT = [(n, "timm") for n in CONFIGS if n != "beit"]


@pytest.mark.parametrize("folder", NOT_BEIT, indirect=True)
def test_peft_opens_ours_on_timms_models(folder, tmp_path, compare):
    """The frozen model is a folder of the weights alone, with a head of zeros."""
    config, base, task, _ = folder
    images, logits = ours(config, base, task, pictures(tmp_path))
    card = card_of(task, config, "", {})
    zeros = {name: np.zeros_like(value) for name, value in task.head.items()}
    frozen = WRITERS["timm"](config, {**base, "head": zeros}, task.metadata, card)
    write_folder(tmp_path / "frozen", frozen)
    write_folder(tmp_path / "adapter", adapter_files(task, config, card, "timm"))
    model = timm.create_model(f"local-dir:{tmp_path / 'frozen'}", pretrained=True)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.no_grad():
        out = model(torch_models.nchw(images)).numpy()
    compare({"logits": out}, {"logits": logits}, 1e-4)
    again = load_factors(tmp_path / "adapter")
    _, found = ours(config, base, again, pictures(tmp_path))
    compare({"again": found}, {"again": logits}, 1e-4)
