"""A ViT with its head as a folder that transformers or timm opens.

The names of the tensors are those that `load_vit` reads (layouts.py), so that such a folder can
also be loaded here. Letters: `d` width, `c` classes.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.positions import resize_positions
from fact_jax.errors import UserError
from fact_jax.files.beside import PREPROCESSOR, json_bytes, labels, preprocessor
from fact_jax.files.card import Card, model_card
from fact_jax.files.hf_models import hf_model
from fact_jax.files.kinds import TABLE
from fact_jax.files.layouts import LAYOUTS
from fact_jax.files.metadata import flat
from fact_jax.files.timm_models import TimmModel, timm_model
from fact_jax.tuning.method import Base

TENSORS = "model.safetensors"
_KEY_BIAS = "Transformer/encoderblock/MultiHeadDotProductAttention_1/key/bias"
_ACTIVATIONS = {
    "exact": "gelu",
    "tanh": "gelu_pytorch_tanh",
    "quick": "quick_gelu",
    "silu": "silu",
}
_TIMM_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu", "silu": "silu"}


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
    model = hf_model(config)
    side = metadata.get("image_size") or config.image_size
    _check_side(config, side)
    tensors = _tensors(model.layout, base, config, side, f"{model.model_type}.")
    settings = {
        "architectures": [model.architecture],
        "model_type": model.model_type,
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
    if model.reads_patches:
        _check_mlp(config)
        settings |= {"mlp_ratio": config.mlp_dim // config.width, "use_swiglu_ffn": False}
        settings |= {"use_mask_token": False, "num_register_tokens": config.registers}
    else:
        settings["intermediate_size"] = config.mlp_dim
    if config.positions == "relative":
        settings |= {"use_relative_position_bias": True, "use_mean_pooling": True}
    if (head := base.get("head")) is not None:
        tensors["classifier.weight"] = head_weight(head, model.reads_patches)
        tensors["classifier.bias"] = np.asarray(head["bias"], np.float32)
        names = labels(metadata, len(head["bias"]))
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
        if metadata.get("multi_label"):
            settings["problem_type"] = "multi_label_classification"
    if model.model_type == "dinov2_with_registers":  # transformers has no switch for this one
        tensors["dinov2_with_registers.embeddings.mask_token"] = np.zeros(
            (1, config.width), np.float32
        )
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
    side = metadata.get("image_size") or config.image_size
    _check_side(config, side)
    model, tensors = _timm_tensors(timm_model(config), base, config, side)
    classes = 0
    if (head := base.get("head")) is not None:
        tensors["head.weight"] = head_weight(head, False)
        tensors["head.bias"] = np.asarray(head["bias"], np.float32)
        classes = len(head["bias"])
    pictures = preprocessor(metadata, config.image_size)
    settings = {
        "architecture": model.architecture,
        "num_classes": classes,
        "num_features": config.width,
        "model_args": {
            "img_size": side,
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": _mlp_ratio(config),
            "init_values": 1.0 if config.layer_scale else None,
            **({} if model.gelu else {"act_layer": _TIMM_ACTIVATIONS[config.gelu]}),
            **model.arguments,
        },
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": side / pictures["size"]["height"],
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


def _timm_tensors(
    model: TimmModel, base: Base, config: ViTConfig, side: int
) -> tuple[TimmModel, dict[str, np.ndarray]]:
    """The model with what the biases of its attention need, and the ViT's tensors."""
    tensors = _tensors(model.layout, base, config, side, "")
    if config.positions == "rope":
        model = _with_biases(model, tensors)
    if not model.class_row:  # the class token takes its row with it
        table, token = tensors["pos_embed"], tensors["cls_token"]
        tensors["cls_token"], tensors["pos_embed"] = token + table[:, :1], table[:, 1:].copy()
    return model, tensors


def _with_biases(model: TimmModel, tensors: dict[str, np.ndarray]) -> TimmModel:
    """timm's DINOv3 with biases of query, key and value, or without, as in the published files.

    The class of attention that timm's DINOv3 has by default has no bias of keys, and reads the
    weight of the layer past PEFT if it has the other two.
    """
    biases = [name for name in tensors if name.endswith("attn.qkv.bias")]
    if any(tensors[name].any() for name in biases):
        more = {"qkv_bias": True, "attn_type": "rope"}
        return model._replace(arguments={**model.arguments, **more})
    for name in biases:
        del tensors[name]
    return model


def _check_side(config: ViTConfig, side: int) -> None:
    """Raises UserError for a BEiT on images of another side than its tables are for."""
    if config.positions == "relative" and side != config.image_size:
        raise UserError(
            f"The relative positions are those of images of {config.image_size} pixels, and the "
            f"task's have {side}: other libraries take other tables for them. Export it with "
            "--format onnx or stablehlo."
        )


def _check_mlp(config: ViTConfig) -> None:
    """Raises UserError for a DINOv2 whose MLP's width is no multiple of its own."""
    if config.mlp_dim % config.width:
        raise UserError(
            f"transformers' DINOv2 has MLPs of a multiple of its width; this ViT has mlp_dim "
            f"{config.mlp_dim} and width {config.width}. Export it for timm, or with --format onnx "
            "or stablehlo."
        )


def _mlp_ratio(config: ViTConfig) -> float:
    """The number of which timm's ``int(width * mlp_ratio)`` is the MLP's width."""
    ratio = config.mlp_dim / config.width
    if int(config.width * ratio) < config.mlp_dim:  # rounded down, as for 976 and 448
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def head_weight(head: dict[str, Any], reads_patches: bool) -> np.ndarray:
    """A classifier's weight [c, d] in PyTorch; [c, 2 d] if it also reads the mean patch."""
    weight = np.asarray(head["kernel"], np.float32).T
    if reads_patches:
        weight = np.concatenate([weight, np.zeros_like(weight)], axis=1)
    return np.ascontiguousarray(weight)


def _file_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def _tensors(
    title: str, base: Base, config: ViTConfig, side: int, prefix: str
) -> dict[str, np.ndarray]:
    """The ViT's tensors by a PyTorch layout's names; the position table is for images of a side."""
    layout = next(layout for layout in LAYOUTS if layout.title == title)
    parts: dict[str, dict[int, np.ndarray]] = {}
    for parameter, array in _parameters(base, config, side).items():
        layers = enumerate(array) if "encoderblock" in parameter else [(None, array)]
        for layer, one in layers:
            name, (part, _) = layout.tensor(parameter, layer)
            if parameter.endswith("kernel"):
                one = one.transpose((3, 2, 0, 1) if one.ndim == 4 else (1, 0))
            parts.setdefault(prefix + name, {})[part] = one
    return {
        name: np.ascontiguousarray(np.concatenate([those[i] for i in sorted(those)]))
        for name, those in parts.items()
    }


def _parameters(base: Base, config: ViTConfig, side: int) -> dict[str, np.ndarray]:
    """The parameters without the head, with a table for a side, and without biases of no effect.

    Other libraries' models lack some biases, which a method may have trained or merged here. The
    patches' bias before a norm becomes a part of the table. A key's bias adds the same number to
    all scores of a query, which softmax ignores, unless the keys are rotated.
    """
    plain = flat({k: v for k, v in base.items() if k != "head"})
    arrays = {name: np.asarray(value, np.float32) for name, value in plain.items()}
    if (table := arrays.get(TABLE)) is not None:
        grid, single = side // config.patch_size, int(config.class_token)
        resized = resize_positions(jnp.asarray(table), grid, single, config.table_resize)
        arrays[TABLE] = np.array(resized)
        if config.pre_norm:  # whose patches have no bias in timm
            arrays[TABLE][:, single:] += arrays.pop("embedding/bias")
    if config.positions == "relative":
        del arrays[_KEY_BIAS]
    return arrays
