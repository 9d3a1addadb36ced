"""Files that transformers and timm themselves have written, read by `load_vit`."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_models import import_timm, nchw

import_timm()  # before transformers, which imports torchvision, too
import transformers  # noqa: E402

from fact_jax import features, load_vit  # noqa: E402
from fact_jax.files.torch_zip import TorchZip  # noqa: E402

SIZES = dict(num_hidden_layers=12, hidden_size=192, num_attention_heads=3)
TINY = dict(SIZES, intermediate_size=768, image_size=64, patch_size=16)
DINOV2 = dict(num_hidden_layers=12, hidden_size=384, num_attention_heads=6)
DINOV2 |= dict(mlp_ratio=4, image_size=112, patch_size=14)
# The class token does not depend on the order of the patches, which MAE shuffles.
MAE = dict(TINY, mask_ratio=0.0, decoder_hidden_size=32, decoder_intermediate_size=64)
MAE |= dict(decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
OTHER = dict(TINY, layer_norm_eps=0.1, hidden_act="gelu_pytorch_tanh")
SHARDS = dict(max_shard_size="5MB")


def randomise(model):
    """Random everything: zero biases and unit gains would hide a swapped one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def same_features(compare):
    """Features of what is read from `path` against the class token [b, d] of a PyTorch model."""

    def check(path, model, variant="vit_ti16", size=64):
        side = 98 if variant == "dinov2_s14" else size
        images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype("float32")
        with torch.no_grad():
            if hasattr(model, "forward_features"):  # timm's
                tokens = model.forward_features(nchw(images))
            else:
                tokens = model(pixel_values=nchw(images)).last_hidden_state
        vit, base = load_vit(variant, path)
        assert vit.config.image_size == size
        actual = np.asarray(features(vit, base, images))
        compare({"features": actual}, {"features": tokens[:, 0].numpy()}, 2e-5)

    return check


@pytest.mark.parametrize(
    ("around", "config", "settings", "save", "dtype"),
    [
        ("ViTModel", "ViTConfig", TINY, {}, None),
        ("ViTModel", "ViTConfig", TINY, SHARDS, None),
        ("ViTModel", "ViTConfig", OTHER, {}, None),
        ("ViTModel", "ViTConfig", TINY, {}, torch.float16),
        ("ViTModel", "ViTConfig", TINY, {}, torch.bfloat16),
        ("ViTForImageClassification", "ViTConfig", TINY, {}, None),
        ("ViTForImageClassification", "ViTConfig", TINY, SHARDS, None),
        ("ViTMAEForPreTraining", "ViTMAEConfig", MAE, {}, None),
        ("Dinov2Model", "Dinov2Config", DINOV2, {}, None),
        ("Dinov2ForImageClassification", "Dinov2Config", DINOV2, {}, None),
    ],
)
def test_transformers(same_features, tmp_path, around, config, settings, save, dtype):
    model = randomise(getattr(transformers, around)(getattr(transformers, config)(**settings)))
    model = model.to(dtype) if dtype else model
    model.save_pretrained(tmp_path, **save)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(save)
    inner = getattr(model, "vit", getattr(model, "dinov2", model)).float()
    kind = ("dinov2_s14", 112) if config == "Dinov2Config" else ()
    same_features(tmp_path, inner, *kind)


def test_a_state_dict_saved_by_hand(same_features, tmp_path):
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**TINY)))
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    for name in ("vit.safetensors", "vit.pt"):
        same_features(tmp_path / name, model)


def without_distillation(tensors, table):
    """Without its token DeiT is a ViT with the shared parameters."""
    first, _, *patches = tensors[table].split([1, 1, tensors[table].shape[1] - 2], dim=1)
    return {**tensors, table: torch.cat([first, *patches], 1)}


def test_deit_without_its_distillation_token(same_features, tmp_path):
    config = transformers.DeiTConfig(**TINY)
    deit = randomise(transformers.DeiTModel(config, add_pooling_layer=False))
    deit.save_pretrained(tmp_path)
    vit = transformers.ViTModel(transformers.ViTConfig(**TINY), add_pooling_layer=False).eval()
    tensors = without_distillation(deit.state_dict(), "embeddings.position_embeddings")
    del tensors["embeddings.distillation_token"]
    vit.load_state_dict(tensors, strict=True)
    with pytest.warns(UserWarning, match="distillation token"):
        same_features(tmp_path, vit)


@pytest.mark.filterwarnings("ignore:.*the distillation token and its position are dropped")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_timm(same_features, tmp_path, name, kind):
    model = randomise(import_timm().create_model(name, img_size=64))
    path, tensors = tmp_path / f"timm.{kind}", model.state_dict()
    if kind == "pth":
        torch.save({"model": tensors, "epoch": 3, "args": None}, path)
    else:
        save_file(tensors, path)
    plain = import_timm().create_model("vit_tiny_patch16_224", img_size=64).eval()
    if "distilled" in name:
        tensors = without_distillation(tensors, "pos_embed")
    tensors = {k: v for k, v in tensors.items() if k in plain.state_dict()}
    plain.load_state_dict(tensors, strict=True)
    same_features(path, plain)


def test_timm_dinov2(same_features, tmp_path):
    model = randomise(import_timm().create_model("vit_small_patch14_dinov2", img_size=98))
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    same_features(tmp_path / "timm.safetensors", model, "dinov2_s14", 98)


def test_what_pytorch_saves_is_read(tmp_path):
    """A training checkpoint: nested, views of shared storage, optimiser, arguments."""
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    x = torch.arange(24.0).reshape(2, 3, 4)
    views = {"t": x.permute(2, 0, 1), "part": x[1:, 1:, ::2], "bf": x.bfloat16(), "s": x.sum()}
    saved = {
        "model": layer.state_dict(),
        "optimizer": optimiser.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, name="x"),
        "views": views,
        "big": 2**40,
        "parameter": torch.nn.Parameter(x),
    }
    torch.save(saved, tmp_path / "checkpoint.pth")
    file = TorchZip(tmp_path / "checkpoint.pth")
    expected = {f"model.{n}": v for n, v in layer.state_dict().items()}
    expected |= {f"views.{n}": v for n, v in views.items()} | {"parameter": x}
    for i, moments in optimiser.state_dict()["state"].items():
        expected |= {f"optimizer.state.{i}.{n}": v for n, v in moments.items()}
    assert file.shapes == {n: tuple(v.shape) for n, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_array_equal(file.read(name).astype("float64"), value.double().numpy())
