"""Files that transformers and timm themselves have written, read by `load_vit`."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_models import import_timm

import_timm()  # before transformers, which imports torchvision, too
import transformers  # noqa: E402

from fact_jax import features, load_vit  # noqa: E402

TINY = dict(
    hidden_size=192,
    num_hidden_layers=12,
    num_attention_heads=3,
    intermediate_size=768,
    image_size=64,
    patch_size=16,
)


def randomise(model):
    """Random everything: zero biases and unit gains would hide a swapped one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


@pytest.fixture
def same_features(compare):
    """Features of what is read from `path` against the class token [b, d] of the other side."""

    def check(images, path, expected, variant="vit_ti16", size=64):
        model, base = load_vit(variant, path)
        assert model.config.image_size == size
        actual = np.asarray(features(model, base, images))
        compare({"features": actual}, {"features": expected}, 2e-5)

    return check


def class_token(model, images, **kwargs):
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return model(pixel_values=pixels, **kwargs).last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize("around", ["ViTModel", "ViTForImageClassification"])
@pytest.mark.parametrize("shards", [None, "5MB"])
def test_vit(same_features, images, tmp_path, around, shards):
    model = randomise(getattr(transformers, around)(transformers.ViTConfig(**TINY)))
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    expected = class_token(getattr(model, "vit", model), images)
    same_features(images, tmp_path, expected)


def test_a_config_with_other_settings(same_features, images, tmp_path):
    settings = {"layer_norm_eps": 0.1, "hidden_act": "gelu_pytorch_tanh"}
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**TINY, **settings)))
    model.save_pretrained(tmp_path)
    same_features(images, tmp_path, class_token(model, images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(same_features, images, tmp_path, dtype):
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**TINY))).to(dtype)
    model.save_pretrained(tmp_path)
    same_features(images, tmp_path, class_token(model.float(), images))


def test_a_state_dict_saved_by_hand(same_features, images, tmp_path):
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**TINY)))
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    expected = class_token(model, images)
    for name in ("vit.safetensors", "vit.pt"):
        same_features(images, tmp_path / name, expected)


def test_mae(same_features, images, tmp_path):
    """The class token does not depend on the order of the patches, which MAE shuffles."""
    config = transformers.ViTMAEConfig(
        **TINY,
        mask_ratio=0.0,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    model = randomise(transformers.ViTMAEForPreTraining(config))
    model.save_pretrained(tmp_path)
    same_features(images, tmp_path, class_token(model.vit, images))


def test_deit_without_its_distillation_token(same_features, images, tmp_path):
    """Without the token DeiT is a ViT: the reference is that ViT with the shared parameters."""
    deit = randomise(
        transformers.DeiTModel(transformers.DeiTConfig(**TINY), add_pooling_layer=False)
    )
    deit.save_pretrained(tmp_path)
    vit = transformers.ViTModel(transformers.ViTConfig(**TINY), add_pooling_layer=False).eval()
    tensors = deit.state_dict()
    tensors.pop("embeddings.distillation_token")
    table = tensors["embeddings.position_embeddings"]
    tensors["embeddings.position_embeddings"] = torch.cat([table[:, :1], table[:, 2:]], 1)
    vit.load_state_dict(tensors, strict=True)
    with pytest.warns(UserWarning, match="distillation token"):
        same_features(images, tmp_path, class_token(vit, images))


@pytest.mark.parametrize("around", ["Dinov2Model", "Dinov2ForImageClassification"])
def test_dinov2(same_features, tmp_path, around):
    config = transformers.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        mlp_ratio=4,
        image_size=112,
        patch_size=14,
    )
    model = randomise(getattr(transformers, around)(config))
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 98, 98, 3)).astype("float32")
    expected = class_token(getattr(model, "dinov2", model), images)
    same_features(images, tmp_path, expected, "dinov2_s14", 112)


@pytest.mark.filterwarnings("ignore:.*the distillation token and its position are dropped")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_timm(same_features, images, tmp_path, name, kind):
    timm = import_timm()
    model = randomise(timm.create_model(name, img_size=64))
    path = tmp_path / f"timm.{kind}"
    if kind == "pth":
        torch.save({"model": model.state_dict(), "epoch": 3, "args": None}, path)
    else:
        save_file(model.state_dict(), path)
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    tensors = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    if "distilled" in name:
        table = tensors["pos_embed"]
        tensors["pos_embed"] = torch.cat([table[:, :1], table[:, 2:]], 1)
    plain.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = plain.forward_features(pixels)[:, 0].numpy()
    same_features(images, path, expected)


def test_timm_dinov2(same_features, tmp_path):
    model = import_timm().create_model("vit_small_patch14_dinov2", img_size=98)
    model = randomise(model)
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    images = np.random.default_rng(0).normal(size=(2, 98, 98, 3)).astype("float32")
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = model.forward_features(pixels)[:, 0].numpy()
    same_features(images, tmp_path / "timm.safetensors", expected, "dinov2_s14", 98)
