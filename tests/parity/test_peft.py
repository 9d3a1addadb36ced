"""Adapters of PEFT: ours opened by peft itself, and peft's own read here, with the same logits."""

from __future__ import annotations

import json

import jax
import numpy as np
import peft
import pytest
import torch
import torch_models
import transformers
from safetensors.numpy import load_file, save_file
from stored.cases import Draw, random_base
from torch_backbones import hugging_face
from written_factors import trainable

from fact_jax import (
    VARIANTS,
    FacTCP,
    FacTTK,
    FacTTT,
    LoRA,
    Predictor,
    UserError,
    ViTConfig,
    load_factors,
    load_vit,
)
from fact_jax.algebra import Increments, round_to
from fact_jax.backbone.vit import ViT
from fact_jax.files.factors import TrainedTask, to_bytes
from fact_jax.files.folder import write_folder
from fact_jax.files.peft_writing import adapter_files
from fact_jax.serving.folders import card_of
from fact_jax.tuning import Combination, DoRA

SMALL = ViTConfig(64, 3, 4, 256, 16, 32, layer_norm_eps=1e-12, precision="highest")
DINO = SMALL.replace(layer_scale=True, layer_norm_eps=1e-6, patch_size=8)
TIMM = SMALL.replace(layer_norm_eps=1e-6)
METHODS = {
    "tt": FacTTT(5, 3.0),
    "tk": FacTTK(8, 2.0),
    "cp": FacTCP(8, 2.0),
    "lora": LoRA(4, 0.5, "q,v,fc2"),
    "shared": LoRA(4, 0.5, "q,k,v", shared_input=True),
    "dora": DoRA(4, 0.5, "q,k,v,fc2"),
    "both": Combination((("fact_tt", FacTTT(3, 2.0)), ("lora", LoRA(2, 1.0, "k"))), 0.5),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def task_of(path, method, config, classes=7):
    tree = trainable(method, config, classes)
    tree["factors"] = jax.tree.map(lambda x: 0.4 * x, tree["factors"])
    path.write_bytes(to_bytes(method, tree, config, {"class_names": [*"abcdefg"][:classes]}))
    return load_factors(path)


def classifier(config, base, classes):
    """transformers' classifier of DINOv2, also with registers, or BEiT; its head is random."""
    kind = "Beit" if config.pooling == "mean" else "Dinov2"
    kind += "WithRegisters" if config.registers else ""
    inner = torch_models.dinov2(config, base) if kind == "Dinov2" else hugging_face(config)
    inner.config.num_labels = classes
    model = getattr(transformers, f"{kind}ForImageClassification")(inner.config)
    setattr(model, model.base_model_prefix, inner)
    return model.eval()


def model_of(config, names, base, classes=7):
    """The frozen model in PyTorch, with a head of zeros."""
    head = {"kernel": np.zeros((config.width, classes), "float32"), "bias": np.zeros(classes, "f4")}
    if names == "timm":
        return torch_models.timm_vit(config, base, head)
    if config.layer_scale:
        return classifier(config, base, classes)
    return torch_models.hugging_face_vit(config, base, head)


def logits_of(model, images):
    with torch.no_grad():
        out = model(torch_models.nchw(images))
    return getattr(out, "logits", out).numpy()


def ours(config, base, task, images):
    return Predictor(ViT(config), base, task).logits(images)


def moved(config, base, task, images, logits):
    """Whether the increments change the logits by much, without which agreement says nothing."""
    frozen = task._replace(factors=jax.tree.map(np.zeros_like, task.factors))
    return np.abs(logits - ours(config, base, frozen, images)).max() > 0.1 * np.abs(logits).max()


@pytest.mark.parametrize("names", ["transformers5", "timm"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_opens_ours_with_the_same_logits(tmp_path, compare, name, names):
    config = TIMM if names == "timm" else SMALL
    base, images = random_base(config, 0), Draw(1)((4, 32, 32, 3))
    task = task_of(tmp_path / "f.safetensors", METHODS[name], config)
    card = card_of(task, config, "", {})
    write_folder(tmp_path / "adapter", adapter_files(task, config, card, names))
    model = model_of(config, names, base)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = ours(config, base, task, images)
    assert moved(config, base, task, images, expected)
    compare({name: logits_of(adapted, images)}, {name: expected}, 1e-4)
    # And here again.
    again = load_factors(tmp_path / "adapter")
    assert again.metadata["class_names"] == [*"abcdefg"]
    compare({"again": ours(config, base, again, images)}, {"again": expected}, 1e-4)


KINDS = {
    "dinov2": DINO,
    "registers": DINO.replace(registers=4),
    "beit": DINO.replace(
        positions="relative", key_bias=False, pooling="mean", layer_norm_eps=1e-12
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_opens_ours_for_other_kinds(tmp_path, compare, kind):
    """Its own file of weights is read here: transformers has drawn them."""
    config, images = KINDS[kind], Draw(1)((4, 32, 32, 3))
    model = model_of(config, "", random_base(DINO, 0))
    model.save_pretrained(tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "vit_mini", config)
        vit, base = load_vit("vit_mini", tmp_path / "model", precision="highest")
    task = task_of(tmp_path / "f.safetensors", FacTTT(5, 3.0), vit.config)
    card = card_of(task, vit.config, "", {})
    write_folder(tmp_path / "adapter", adapter_files(task, vit.config, card))
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    expected = ours(vit.config, base, task, images)
    assert moved(vit.config, base, task, images, expected)
    compare({"logits": logits_of(adapted, images)}, {"logits": expected}, 1e-4)
    again = load_factors(tmp_path / "adapter")
    compare({"again": ours(vit.config, base, again, images)}, {"again": expected}, 1e-4)


CONFIGS = {
    "plain": dict(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=4, lora_alpha=3, target_modules=["q_proj", "fc1"], use_rslora=True),
    "patterns": dict(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "o_proj", "fc2"],
        rank_pattern={"fc2": 2, "layers.1.attention.q_proj": 7},
        alpha_pattern={"q_proj": 3, "^vit.layers.0.mlp.fc2": 16},
    ),
    "dora": dict(r=4, lora_alpha=3, target_modules=["q_proj", "fc1"], use_dora=True),
    "some layers": dict(r=3, target_modules=["k_proj"], layers_to_transform=[1]),
}
OLD_NAMES = {
    "vit.layers.": "vit.encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def made_by_peft(folder, model, images, **settings):
    """An adapter directory with random numbers, and its logits."""
    head = "head" if hasattr(model, "head") else "classifier"
    adapted = peft.get_peft_model(model, peft.LoraConfig(modules_to_save=[head], **settings))
    rng = np.random.default_rng(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.from_numpy(rng.normal(0, 0.3, parameter.shape).astype("f4"))
    adapted.save_pretrained(folder)
    return logits_of(adapted.eval(), images)


def renamed(text):
    """The names of transformers 4, in which most adapters of the hub are written."""
    for new, old in OLD_NAMES.items():
        text = text.replace(new, old)
    return text


@pytest.mark.parametrize("generation", [4, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_of_peft_have_the_same_logits_here(tmp_path, compare, name, generation):
    base, images = random_base(SMALL, 0), Draw(1)((4, 32, 32, 3))
    settings = CONFIGS[name]
    model = model_of(SMALL, "transformers5", base, 5)
    expected = made_by_peft(tmp_path, model, images, **settings)
    if generation == 4:
        path = tmp_path / "adapter_model.safetensors"
        save_file({renamed(k): v for k, v in load_file(path).items()}, path)
        path = tmp_path / "adapter_config.json"
        content = json.loads(path.read_text())
        content["alpha_pattern"] = {
            renamed(k).replace("q_proj", "query"): v for k, v in content["alpha_pattern"].items()
        }
        path.write_text(json.dumps(content))
    task = load_factors(tmp_path)
    task = known(task, SMALL)
    assert moved(SMALL, base, task, images, expected) or name == "some layers"
    compare({name: ours(SMALL, base, task, images)}, {name: expected}, 1e-4)
    if name == "dora":
        with pytest.raises(UserError, match="norms of columns"):
            Increments.of(task.method, task.factors, SMALL)
        return
    # Rounded to FacT-TT: at full rank the same, at a smaller one within the bound.
    increments = Increments.of(task.method, task.factors, SMALL)
    exact = round_to(FacTTT(64, 1.0), increments, SMALL)
    small = round_to(FacTTT(2, 1.0), increments, SMALL)
    assert exact.error < 1e-6
    assert 0 < small.error <= small.bound
    rounded = task._replace(method=exact.method, factors=exact.factors)
    compare({"rounded": ours(SMALL, base, rounded, images)}, {"rounded": expected}, 1e-4)


def known(task: TrainedTask, config: ViTConfig) -> TrainedTask:
    """The small ViT has no name, by which its depth would be known."""
    factors = {
        k: np.pad(v, ((0, config.depth - len(v)), *[(0, 0)] * (v.ndim - 1)))
        for k, v in task.factors.items()
    }
    vit = {**task.metadata["vit"], "depth": config.depth}
    return task._replace(factors=factors, metadata={**task.metadata, "vit": vit})


class Classifier(torch.nn.Module):
    """A head on DINOv3, as people write it: transformers has no classifier of its own."""

    def __init__(self, config):
        super().__init__()
        self.backbone, self.head = hugging_face(config), torch.nn.Linear(config.width, 5)

    def forward(self, images):
        return self.head(self.backbone(images).pooler_output)


def test_an_adapter_of_a_classifier_on_dinov3_has_the_same_logits_here(tmp_path, compare):
    config = DINO.replace(
        registers=4, positions="rope", key_bias=False, layer_norm_eps=1e-5, width=64
    )
    model, images = Classifier(config), Draw(1)((4, 32, 32, 3))
    model.backbone.save_pretrained(tmp_path / "model")
    modules = ["q_proj", "up_proj", "down_proj"]
    expected = made_by_peft(tmp_path, model, images, r=4, target_modules=modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "vit_mini", config)
        vit, base = load_vit("vit_mini", tmp_path / "model", precision="highest")
    task = known(load_factors(tmp_path), vit.config)
    assert task.method.sites == "q,fc1,fc2"
    assert moved(vit.config, base, task, images, expected)
    compare({"logits": ours(vit.config, base, task, images)}, {"logits": expected}, 1e-4)


def test_an_adapter_of_timms_fused_layer_has_the_same_logits_here(tmp_path, compare):
    base, images = random_base(TIMM, 0), Draw(1)((4, 32, 32, 3))
    model = model_of(TIMM, "timm", base, 5)
    expected = made_by_peft(
        tmp_path,
        model,
        images,
        r=4,
        lora_alpha=4,
        target_modules=["qkv", "proj"],
        exclude_modules=["patch_embed.proj"],
    )
    task = load_factors(tmp_path)
    assert task.method.sites == "q,k,v,o"
    compare({"timm": ours(TIMM, base, task, images)}, {"timm": expected}, 1e-4)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft suspects biases to be cut
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path):
    images = Draw(1)((1, 32, 32, 3))

    def refusal(folder, **settings):
        model = model_of(SMALL, "transformers5", random_base(SMALL, 0), 5)
        made_by_peft(tmp_path / folder, model, images, target_modules=["q_proj"], **settings)
        with pytest.raises(ValueError, match=folder) as caught:
            load_factors(tmp_path / folder)
        return str(caught.value)

    assert "LoRA with biases" in refusal("biases", lora_bias=True)
    assert "trained biases" in refusal("all", bias="lora_only")
    assert "pissa" in refusal("pissa", init_lora_weights="pissa")
