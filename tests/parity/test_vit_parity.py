"""ViT logits and every block's output against timm's and transformers' models.

The models take random parameters, are saved by their own library, and read with `load_vit`.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torch_models
import transformers
from places import ROOT
from safetensors.torch import save_file
from stored.cases import SMALL, SMALL_DINO, Draw, VitCase, vit_outputs

from fact_jax import VARIANTS, ViTConfig, get_variant, load_vit
from fact_jax.files.weights import write_npz

REAL_DINOV2 = (
    ROOT.parent / "shared" / "weights" / "dinov2_small_f16.safetensors"
)  # beside the project's root
VIT_B16 = get_variant("vit_b16").replace(precision="highest")
DINOV2_S14 = get_variant("dinov2_s14").replace(precision="highest", image_size=518)


def hugging_face(config: ViTConfig) -> ViTConfig:
    return dataclasses.replace(config, layer_norm_eps=1e-12)


@pytest.fixture
def load(monkeypatch):
    """Reads a file of any shape, as a variant of that shape."""

    def load(config: ViTConfig, path):
        # Hugging Face's config.json has the epsilon; other files leave it to the variant.
        variant = dataclasses.replace(config, layer_norm_eps=0.5) if path.is_dir() else config
        monkeypatch.setitem(VARIANTS, "of_the_test", variant)
        model, base = load_vit("of_the_test", path)
        assert model.config == config
        return model, base

    return load


def save_timm(model, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def save_hugging_face(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


TIMM = (torch_models.timm_vit, save_timm)
TRANSFORMERS = (torch_models.hugging_face_vit, save_hugging_face)
DINOV2 = (torch_models.dinov2, save_hugging_face)


@pytest.mark.parametrize(
    ("source", "case"),
    [
        pytest.param(TIMM, VitCase(SMALL, 16), id="timm"),
        pytest.param(TIMM, VitCase(SMALL_DINO, 36), id="timm-layer_scale"),
        pytest.param(TIMM, VitCase(VIT_B16, 224), id="timm-vit_b16"),
        pytest.param(TRANSFORMERS, VitCase(hugging_face(SMALL), 16), id="transformers"),
        pytest.param(TRANSFORMERS, VitCase(hugging_face(VIT_B16), 224), id="transformers-vit_b16"),
        pytest.param(DINOV2, VitCase(SMALL_DINO, 36), id="dinov2"),
        pytest.param(DINOV2, VitCase(SMALL_DINO, 20), id="dinov2-fewer_patches"),
        pytest.param(DINOV2, VitCase(SMALL_DINO, 44), id="dinov2-more_patches"),
        pytest.param(DINOV2, VitCase(DINOV2_S14, 98), id="dinov2_s14-37x37_to_7x7"),
        pytest.param(DINOV2, VitCase(DINOV2_S14, 224), id="dinov2_s14-37x37_to_16x16"),
    ],
)
def test_logits_and_blocks(source, case, load, compare, tmp_path):
    build, save = source
    inputs = case.inputs()
    torch_model = build(case.config, inputs["base"], inputs["head"])
    model, base = load(case.config, save(torch_model, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, base, inputs["base"])
    head, images = inputs["head"], inputs["images"]
    expected = torch_models.vit_outputs(torch_model, head, images)
    compare(vit_outputs(model.config, base, head, images), expected, 1e-5)


@pytest.mark.parametrize(("mean", "bound"), [(10, 5e-6), (100, 1e-4)])
def test_tokens_with_a_large_common_mean(mean, bound, compare):
    """A LayerNorm by E[x^2] - E[x]^2 is 1e-5 and 1e-3 away here."""
    case = VitCase(SMALL, 16)
    inputs = case.inputs()
    base = inputs["base"]
    base["Transformer"]["posembed_input"]["pos_embedding"] *= 300  # deviation 1
    base["cls"] += mean
    base["embedding"]["bias"] += mean
    torch_model = torch_models.timm_vit(case.config, base, inputs["head"])
    expected = torch_models.vit_outputs(torch_model, inputs["head"], inputs["images"])
    compare(case.ours(**inputs), expected, bound)


@pytest.mark.skipif(not REAL_DINOV2.exists(), reason=f"{REAL_DINOV2} is not on this machine")
@pytest.mark.parametrize("size", [98, 224])
def test_real_dinov2_weights(size, compare, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(REAL_DINOV2)
    transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
    ).save_pretrained(tmp_path)
    torch_model, report = transformers.Dinov2Model.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert set(report["missing_keys"]) <= {"embeddings.mask_token"}
    assert not report["unexpected_keys"]
    model, base = load_vit("dinov2_s14", tmp_path, precision="highest")
    head = {"kernel": np.eye(384, dtype=np.float32), "bias": np.zeros(384, np.float32)}
    draw = Draw(size)  # two images of coarse and fine noise
    coarse = np.kron(draw((2, 7, 7, 3)), np.ones((1, size // 7, size // 7, 1), np.float32))
    images = coarse + draw(coarse.shape, 0.3)
    expected = torch_models.vit_outputs(torch_model.eval(), head, images)
    compare(vit_outputs(model.config, base, head, images), expected, 1e-5)


def test_timm_reads_the_npz_that_we_write(compare, tmp_path):
    case = VitCase(SMALL, 16)
    inputs = case.inputs()
    write_npz(tmp_path / "vit.npz", case.config, inputs["base"])
    torch_model = torch_models.timm_vit(case.config, inputs["base"], inputs["head"])
    before = torch_models.vit_outputs(torch_model, inputs["head"], inputs["images"])
    for name, parameter in torch_model.named_parameters():
        if not name.startswith("head"):
            parameter.data.zero_()
    torch_model.load_pretrained(tmp_path / "vit.npz")
    after = torch_models.vit_outputs(torch_model, inputs["head"], inputs["images"])
    compare(case.ours(**inputs), after, 1e-5)
    compare(after, before, 1e-7)
