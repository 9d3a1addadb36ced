"""The newer kinds of ViTs against transformers and timm: features, and every block's output.

The models take random parameters, are saved by their own library, and read with `load_vit`.
"""

import numpy as np
import pytest
import torch_backbones
import transformers
from backbone_kinds import KINDS, tiny
from safetensors.torch import save_file
from stored.cases import Draw, kind_outputs

from fact_jax import VARIANTS, get_variant, load_vit

FULL = {
    "dinov2_s14_reg": 518,
    "dinov3_s16": 224,
    "dinov3_s16plus": 224,
    "clip_b16": 224,
    "siglip2_b16": 224,
    "beit_b16": 224,
}


@pytest.fixture
def read(monkeypatch):
    """Reads a file as a variant of a config, whose numerics the file must not need."""

    def read(config, path):
        monkeypatch.setitem(VARIANTS, "of_the_test", config)
        # Without its config.json, a BEiT of Hugging Face has the usual epsilon of its kind.
        changes = {} if path.is_dir() else {"layer_norm_eps": config.layer_norm_eps}
        model, base = load_vit("of_the_test", path, precision="highest", **changes)
        assert model.config == config.replace(precision="highest")
        return model, base

    return read


def drawn(size: int) -> np.ndarray:
    return Draw(size)((2, size, size, 3))


@pytest.mark.parametrize("size", [16, 8, 28])  # of the table, and of fewer and more patches
@pytest.mark.parametrize("kind", KINDS)
def test_transformers(kind, size, read, compare, tmp_path):
    config = tiny(kind)
    theirs = torch_backbones.hugging_face(config)
    theirs.save_pretrained(tmp_path)
    model, base = read(config, tmp_path)
    images = drawn(size)
    compare(kind_outputs(model, base, images), torch_backbones.outputs(theirs, images), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_saved_by_hand(kind, read, compare, tmp_path):
    config = tiny(kind)
    theirs = torch_backbones.hugging_face(config)
    save_file(theirs.state_dict(), tmp_path / "m.safetensors")
    model, base = read(config, tmp_path / "m.safetensors")
    images = drawn(16)
    compare(kind_outputs(model, base, images), torch_backbones.outputs(theirs, images), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_timm(kind, read, compare, tmp_path):
    config = tiny(kind)
    theirs = torch_backbones.timm(kind, config)
    save_file(theirs.state_dict(), tmp_path / "m.safetensors")
    model, base = read(config, tmp_path / "m.safetensors")
    images = drawn(16)
    compare(kind_outputs(model, base, images), torch_backbones.outputs(theirs, images), 1e-5)


_VISION = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96)
_VISION |= dict(image_size=16, patch_size=4)
_TEXT = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
_TWO_TOWERS = dict(vision_config=_VISION, text_config=_TEXT)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("clip", "CLIP", _TWO_TOWERS),
        ("siglip", "Siglip", _TWO_TOWERS),
        ("beit", "BeitForImageClassification", {**_VISION, "use_relative_position_bias": True}),
        ("registers", "Dinov2WithRegistersForImageClassification", {**_VISION, "mlp_ratio": 4}),
    ],
)
def test_models_around_the_vit(kind, name, settings, compare, tmp_path, monkeypatch):
    """The text tower, projections and classifiers are left out, wherever the file has the ViT."""
    around, _, of = name.partition("For")
    config = getattr(transformers, f"{around}Config")(**settings)
    whole = getattr(transformers, f"{around}{f'For{of}' if of else 'Model'}")(config)
    torch_backbones.randomised(whole).save_pretrained(tmp_path)
    inner = next(
        getattr(whole, part)
        for part in ("vision_model", "beit", "dinov2_with_registers")
        if hasattr(whole, part)
    )
    monkeypatch.setitem(VARIANTS, "of_the_test", tiny(kind))
    model, base = load_vit("of_the_test", tmp_path, precision="highest")
    images = drawn(16)
    compare(kind_outputs(model, base, images), torch_backbones.outputs(inner, images), 1e-5)


@pytest.mark.parametrize("variant", FULL)
def test_the_published_shapes_at_their_own_image_size(variant, compare, tmp_path):
    size = FULL[variant]
    config = get_variant(variant).replace(image_size=size)
    theirs = torch_backbones.hugging_face(config)
    theirs.save_pretrained(tmp_path)
    model, base = load_vit(variant, tmp_path, precision="highest")
    assert model.config == config.replace(precision="highest")
    images = drawn(size)[:1]
    compare(kind_outputs(model, base, images), torch_backbones.outputs(theirs, images), 1e-5)
