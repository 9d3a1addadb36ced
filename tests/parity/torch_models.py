"""timm's and transformers' ViTs with the parameters of our layout, and their outputs.

The parameters are random NumPy arrays (stored/cases.py), loaded with `strict=True`: every number of
the PyTorch model is set by it.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from weight_layouts import timm, transformers_5

from fact_jax import ViTConfig


def import_timm():
    """timm, beside a CPU build of PyTorch whose torchvision has no compiled operators.

    A torchvision that PyPI built for CUDA stops at the first operator that is not registered; timm
    and transformers import it and use none of them.
    """
    try:
        import torchvision
    except ImportError:
        pass
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision  # noqa: F401
    import timm as module

    return module


def timm_vit(config: ViTConfig, base: dict, head: dict) -> torch.nn.Module:
    """timm's VisionTransformer with these parameters, in evaluation mode."""
    model = import_timm().create_model(
        "vit_base_patch16_224",
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        num_classes=head["bias"].size,
        init_values=1.0 if config.layer_scale else None,
    )
    scales = _layer_scales(config, base, "blocks.{}.ls{}.gamma")
    return _loaded(model, timm(base), scales, head, "head")


def _layer_scales(config: ViTConfig, base: dict, name: str) -> dict[str, np.ndarray]:
    if not config.layer_scale:
        return {}
    blocks = base["Transformer"]["encoderblock"]
    places = itertools.product(range(config.depth), (0, 1))
    return {name.format(i, j + 1): blocks[f"LayerScale_{j}"][i] for i, j in places}


def _loaded(model, arrays: dict, more: dict, head: dict, name: str) -> torch.nn.Module:
    """The model with these parameters, and a head of this name if it has one."""
    if name:
        more = {**more, f"{name}.weight": head["kernel"].T, f"{name}.bias": head["bias"]}
    tensors = {n: torch.from_numpy(np.array(a)) for n, a in (arrays | more).items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def hugging_face_vit(config: ViTConfig, base: dict, head: dict) -> torch.nn.Module:
    """transformers' ViTForImageClassification (a ViTModel with a head), in evaluation mode."""
    import transformers

    settings = _hugging_face_settings(config)
    settings |= {"intermediate_size": config.mlp_dim, "num_labels": head["bias"].size}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**settings))
    arrays = {f"vit.{n}": a for n, a in transformers_5(base).items()}
    return _loaded(model, arrays, {}, head, "classifier")


def dinov2(config: ViTConfig, base: dict, head: dict | None = None) -> torch.nn.Module:
    """transformers' Dinov2Model, in evaluation mode; it has no head."""
    import transformers

    settings = _hugging_face_settings(config) | {"mlp_ratio": config.mlp_dim // config.width}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    norms = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    arrays = transformers_5(base, **norms, **{"layers.": "encoder.layer."})
    more = _layer_scales(config, base, "encoder.layer.{}.layer_scale{}.lambda1")
    more["embeddings.mask_token"] = np.ones((1, config.width), np.float32)  # for pre-training
    return _loaded(model, arrays, more, {}, "")


def _hugging_face_settings(config: ViTConfig) -> dict:
    return dict(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
    )


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class Play:
    """Plays back masks [b, n, r], in the order in which both implementations draw them."""

    def __init__(self, masks):
        self.masks = iter(masks)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mask, keep = next(self.masks)
        if mask.shape[2] > 1:  # in the last block of the class token alone, as it is read alone
            rest = ((0, 0), (0, x.shape[1] - mask.shape[1]), (0, 0))
            mask = np.pad(mask, rest, constant_values=True)
        assert mask.shape in (tuple(x.shape), (x.shape[0], 1, 1))
        return x * torch.from_numpy(mask) / keep


def vit_outputs(model: torch.nn.Module, head: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """{"logits", "block0", ...} of any of the three models; DINOv2's class token takes `head`."""
    layers = next(
        m for n, m in model.named_modules() if n in ("blocks", "vit.layers", "encoder.layer")
    )
    outputs: dict[str, np.ndarray] = {}
    for i, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda module, args, out, i=i: outputs.__setitem__(f"block{i}", out.numpy())
        )
    with torch.no_grad():
        out = model(nchw(images))
    if hasattr(out, "last_hidden_state"):
        kernel, bias = torch.from_numpy(head["kernel"]), torch.from_numpy(head["bias"])
        logits = out.last_hidden_state[:, 0] @ kernel + bias
    else:
        logits = getattr(out, "logits", out)
    return {"logits": logits.numpy(), **outputs}
