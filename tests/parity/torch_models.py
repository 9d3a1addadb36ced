"""timm's and transformers' ViTs with the parameters of our layout, and their outputs.

The parameters are random NumPy arrays (stored/cases.py), loaded with `strict=True`: every number of
the PyTorch model is set by it.
"""

from __future__ import annotations

import numpy as np
import torch

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
    import timm

    return timm


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _conv(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1)


def _dense(name: str, layer: dict, i: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": layer["kernel"][i].T, f"{name}.bias": layer["bias"][i]}


def _norm(name: str, layer: dict, i: int | None = None) -> dict[str, np.ndarray]:
    pick = (lambda x: x) if i is None else (lambda x: x[i])
    return {f"{name}.weight": pick(layer["scale"]), f"{name}.bias": pick(layer["bias"])}


def _head(name: str, head: dict) -> dict[str, np.ndarray]:
    return {f"{name}.weight": head["kernel"].T, f"{name}.bias": head["bias"]}


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
    encoder = base["Transformer"]
    blocks = encoder["encoderblock"]
    attention, mlp = blocks["MultiHeadDotProductAttention_1"], blocks["MlpBlock_3"]
    arrays = {
        "cls_token": base["cls"],
        "pos_embed": encoder["posembed_input"]["pos_embedding"],
        "patch_embed.proj.weight": _conv(base["embedding"]["kernel"]),
        "patch_embed.proj.bias": base["embedding"]["bias"],
        **_norm("norm", encoder["encoder_norm"]),
        **_head("head", head),
    }
    for i in range(config.depth):
        qkv = [attention[name] for name in ("query", "key", "value")]
        name = f"blocks.{i}."
        arrays |= {
            f"{name}attn.qkv.weight": np.concatenate([p["kernel"][i].T for p in qkv]),
            f"{name}attn.qkv.bias": np.concatenate([p["bias"][i] for p in qkv]),
            **_dense(name + "attn.proj", attention["out"], i),
            **_norm(name + "norm1", blocks["LayerNorm_0"], i),
            **_norm(name + "norm2", blocks["LayerNorm_2"], i),
            **_dense(name + "mlp.fc1", mlp["Dense_0"], i),
            **_dense(name + "mlp.fc2", mlp["Dense_1"], i),
        }
        if config.layer_scale:
            arrays |= {f"{name}ls{j + 1}.gamma": blocks[f"LayerScale_{j}"][i] for j in (0, 1)}
    model.load_state_dict(_tensors(arrays), strict=True)
    return model.eval()


def hugging_face_vit(config: ViTConfig, base: dict, head: dict) -> torch.nn.Module:
    """transformers' ViTForImageClassification (a ViTModel with a head), in evaluation mode."""
    import transformers

    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **_hugging_face_settings(config),
            intermediate_size=config.mlp_dim,
            num_labels=head["bias"].size,
        )
    )
    arrays = _hugging_face_arrays(config, base, "layers", "layernorm_before", "layernorm_after")
    arrays = {f"vit.{name}": array for name, array in arrays.items()} | _head("classifier", head)
    model.load_state_dict(_tensors(arrays), strict=True)
    return model.eval()


def dinov2(config: ViTConfig, base: dict, head: dict | None = None) -> torch.nn.Module:
    """transformers' Dinov2Model, in evaluation mode; it has no head."""
    import transformers

    model = transformers.Dinov2Model(
        transformers.Dinov2Config(
            **_hugging_face_settings(config), mlp_ratio=config.mlp_dim // config.width
        )
    )
    arrays = _hugging_face_arrays(config, base, "encoder.layer", "norm1", "norm2")
    blocks = base["Transformer"]["encoderblock"]
    for i in range(config.depth):
        for j in (0, 1):
            arrays[f"encoder.layer.{i}.layer_scale{j + 1}.lambda1"] = blocks[f"LayerScale_{j}"][i]
    arrays["embeddings.mask_token"] = np.ones((1, config.width), np.float32)  # for pre-training
    model.load_state_dict(_tensors(arrays), strict=True)
    return model.eval()


def _hugging_face_settings(config: ViTConfig) -> dict:
    return dict(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
    )


def _hugging_face_arrays(config, base, layers: str, norm1: str, norm2: str) -> dict:
    encoder = base["Transformer"]
    blocks = encoder["encoderblock"]
    attention, mlp = blocks["MultiHeadDotProductAttention_1"], blocks["MlpBlock_3"]
    arrays = {
        "embeddings.cls_token": base["cls"],
        "embeddings.position_embeddings": encoder["posembed_input"]["pos_embedding"],
        "embeddings.patch_embeddings.projection.weight": _conv(base["embedding"]["kernel"]),
        "embeddings.patch_embeddings.projection.bias": base["embedding"]["bias"],
        **_norm("layernorm", encoder["encoder_norm"]),
    }
    for i in range(config.depth):
        name = f"{layers}.{i}."
        arrays |= {
            **_dense(name + "attention.q_proj", attention["query"], i),
            **_dense(name + "attention.k_proj", attention["key"], i),
            **_dense(name + "attention.v_proj", attention["value"], i),
            **_dense(name + "attention.o_proj", attention["out"], i),
            **_norm(name + norm1, blocks["LayerNorm_0"], i),
            **_norm(name + norm2, blocks["LayerNorm_2"], i),
            **_dense(name + "mlp.fc1", mlp["Dense_0"], i),
            **_dense(name + "mlp.fc2", mlp["Dense_1"], i),
        }
    return arrays


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


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
