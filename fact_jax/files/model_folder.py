"""A ViT with its head as a folder that transformers or timm opens.

The names of the tensors are those that `load_vit` reads (layouts.py), so that such a folder can
also be loaded here. Letters: `d` width, `c` classes.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.positions import resize_positions
from fact_jax.files.beside import PREPROCESSOR, json_bytes, labels, preprocessor
from fact_jax.files.card import Card, model_card
from fact_jax.files.kinds import check_plain
from fact_jax.files.layouts import LAYOUTS, Layout
from fact_jax.files.metadata import flat
from fact_jax.tuning.method import Base

TENSORS = "model.safetensors"
_REMEDY = "Export the merged weights as .npz, which fact-jax reads."
_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}
_TIMM_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_tanh"}


def hugging_face_files(
    config: ViTConfig, base: Base, metadata: dict[str, Any], card: Card
) -> dict[str, bytes]:
    """The files of a folder for transformers, by their names.

    Args:
      config: the ViT's.
      base: its parameters; "head" among them has "kernel" [d, c] and "bias" [c].
      metadata: "class_names", "image_size" and "normalisation", which may be missing.
      card: facts for the model card.
    """
    check_plain(config, "The folder for transformers", _REMEDY)
    side = metadata.get("image_size") or config.image_size
    model = "dinov2" if config.layer_scale else "vit"
    title = {"dinov2": "Hugging Face Dinov2", "vit": "Hugging Face ViT"}[model]
    tensors = _tensors(_layout(title), base, side // config.patch_size, f"{model}.")
    settings = {
        "model_type": model,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": _ACTIVATIONS[config.gelu],
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": side,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
    }
    if model == "dinov2":
        settings["architectures"] = ["Dinov2ForImageClassification"]
        settings |= {"mlp_ratio": config.mlp_dim // config.width, "use_swiglu_ffn": False}
        settings["use_mask_token"] = False
    else:
        settings["architectures"] = ["ViTForImageClassification"]
        settings["intermediate_size"] = config.mlp_dim
    if (head := base.get("head")) is not None:
        weight = np.asarray(head["kernel"], np.float32).T
        if model == "dinov2":  # its head reads the mean of the patches, too
            weight = np.concatenate([weight, np.zeros_like(weight)], axis=1)
        tensors["classifier.weight"] = np.ascontiguousarray(weight)
        tensors["classifier.bias"] = np.asarray(head["bias"], np.float32)
        names = labels(metadata, len(head["bias"]))
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    use = 'from transformers import pipeline\n\npipeline("image-classification", "THIS_FOLDER")'
    return {
        TENSORS: _file_bytes(tensors),
        "config.json": json_bytes(settings),
        PREPROCESSOR: json_bytes(preprocessor(metadata, config.image_size)),
        "README.md": model_card(card, "transformers", f'{use}("picture.jpg")').encode(),
    }


def timm_files(
    config: ViTConfig, base: Base, metadata: dict[str, Any], card: Card
) -> dict[str, bytes]:
    """The files of a folder for timm's ``create_model("local-dir:FOLDER")``, by their names.

    The arguments are those of `hugging_face_files`.
    """
    check_plain(config, "The folder for timm", _REMEDY)
    side = metadata.get("image_size") or config.image_size
    tensors = _tensors(_layout("timm ViT"), base, side // config.patch_size, "")
    classes = 0
    if (head := base.get("head")) is not None:
        tensors["head.weight"] = np.ascontiguousarray(np.asarray(head["kernel"], np.float32).T)
        tensors["head.bias"] = np.asarray(head["bias"], np.float32)
        classes = len(head["bias"])
    pictures = preprocessor(metadata, config.image_size)
    settings = {
        "architecture": "vit_base_patch16_224",  # whose sizes `model_args` replace
        "num_classes": classes,
        "num_features": config.width,
        "model_args": {
            "img_size": side,
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_dim / config.width,
            "init_values": 1.0 if config.layer_scale else None,
            "act_layer": _TIMM_ACTIVATIONS[config.gelu],
        },
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": pictures["image_mean"],
            "std": pictures["image_std"],
            "num_classes": classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": labels(metadata, classes),
        },
    }
    use = (
        'import timm\n\nmodel = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()'
    )
    return {
        TENSORS: _file_bytes(tensors),
        "config.json": json_bytes(settings),
        "README.md": model_card(card, "timm", use).encode(),
    }


def _layout(title: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.title == title)


def _file_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def _tensors(layout: Layout, base: Base, grid: int, prefix: str) -> dict[str, np.ndarray]:
    """The ViT's tensors by a PyTorch layout's names; the position table is for this grid."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for parameter, value in flat({k: v for k, v in base.items() if k != "head"}).items():
        array = np.asarray(value, np.float32)
        if parameter == "Transformer/posembed_input/pos_embedding":
            array = np.asarray(resize_positions(jnp.asarray(array), grid))
        layers = enumerate(array) if "encoderblock" in parameter else [(None, array)]
        for layer, one in layers:
            name, part = layout.tensor(parameter, layer)
            if parameter.endswith("kernel"):
                one = one.transpose((3, 2, 0, 1) if one.ndim == 4 else (1, 0))
            parts.setdefault(prefix + name, {})[part[0]] = one
    return {
        name: np.ascontiguousarray(np.concatenate([those[i] for i in sorted(those)]))
        for name, those in parts.items()
    }
