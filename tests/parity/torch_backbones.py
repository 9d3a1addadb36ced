"""transformers' and timm's models of the newer kinds of ViTs, with random parameters."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from backbone_kinds import as_stored
from torch_models import import_timm, nchw

from fact_jax import ViTConfig

_ACTS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu", "silu": "silu"}


def hugging_face(config: ViTConfig, base: dict | None = None) -> torch.nn.Module:
    """transformers' model of a config's kind, in evaluation mode.

    Its parameters are those of `base`, or else random.
    """
    settings = dict(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
        hidden_act=_ACTS[config.gelu],
    )
    inner = {"intermediate_size": config.mlp_dim}
    if config.positions == "rope":
        gated = config.mlp == "gated"
        settings |= inner | dict(num_register_tokens=config.registers, use_gated_mlp=gated)
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings))
    elif config.positions == "relative":
        settings |= inner | dict(use_relative_position_bias=True)
        model = transformers.BeitModel(transformers.BeitConfig(**settings))
    elif config.registers:
        settings |= dict(num_register_tokens=config.registers)
        settings |= dict(mlp_ratio=config.mlp_dim // config.width)
        model = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**settings)
        )
    elif config.pooling == "attention":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**settings, **inner))
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**settings, **inner))
    if base is None:
        return randomised(model)
    title = "DINOv3, transformers 5" if config.positions == "rope" else "CLIP or SigLIP"
    title = "Dinov2, transformers 5" if config.table_resize == "antialias" else title
    title = "BEiT, transformers 5" if config.positions == "relative" else title
    stored = as_stored(base, f"Hugging Face {title}")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = {
        name: torch.from_numpy(array).reshape(shapes.get(name, array.shape))
        for name, array in stored.items()
    }
    left = model.load_state_dict(tensors, strict=False)
    assert {name.rpartition(".")[2] for name in left.missing_keys} <= {"mask_token"}
    assert all(not tensors[name].any() for name in left.unexpected_keys)  # biases it lacks
    return model.eval()


TIMM = {
    "registers": "vit_small_patch14_reg4_dinov2",
    "rope": "vit_small_patch16_dinov3",
    "rope_gated": "vit_small_plus_patch16_dinov3",
    "clip": "vit_base_patch16_clip_quickgelu_224",
    "siglip": "vit_base_patch16_siglip_224",
    "beit": "beit_base_patch16_224",
    "so400m": "vit_so400m_patch14_siglip_224",
}


def timm(kind: str, config: ViTConfig) -> torch.nn.Module:
    """timm's model of a kind, of a config's shape, in evaluation mode."""
    pool = {"global_pool": "token"} if config.pooling == "class" else {}
    if config.gelu == "tanh":  # as in big_vision and transformers; timm itself takes the exact one
        pool["act_layer"] = "gelu_tanh"
    model = import_timm().create_model(
        TIMM[kind],
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        num_classes=0,
        **pool,
    )
    return randomised(model)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Random everything: zero biases and unit gains would hide a swapped one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def outputs(model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """{"features", "block0", ...} of either library's model."""
    kept: dict[str, np.ndarray] = {}
    places = ("blocks", "encoder.layer", "encoder.layers", "model.layer", "layers")
    layers = next(m for n, m in model.named_modules() if n in places)
    for i, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda module, args, out, i=i: kept.__setitem__(f"block{i}", out.numpy())
        )
    config = getattr(model, "config", None)
    resized = config is not None and hasattr(model, "post_layernorm")  # CLIP and SigLIP ask
    with torch.no_grad():
        out = model(nchw(images), **({"interpolate_pos_encoding": True} if resized else {}))
    return {"features": (out if config is None else out.pooler_output).numpy(), **kept}
