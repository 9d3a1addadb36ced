"""A ViT with its head as a folder that transformers or timm opens.

The names of the tensors are those that `load_vit` reads (layouts.py), so that such a folder can
also be loaded here. Letters: `d` width, `c` classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.positions import resize_positions
from fact_jax.errors import UserError
from fact_jax.files.beside import PREPROCESSOR, json_bytes, labels, preprocessor
from fact_jax.files.card import Card, model_card
from fact_jax.files.hf_models import BEIT, hf_model
from fact_jax.files.kinds import TABLE, kind_of
from fact_jax.files.layouts import LAYOUTS
from fact_jax.files.metadata import flat
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


class _TimmModel(NamedTuple):
    """A model of timm, whose sizes ``model_args`` replace.

    Attributes:
      architecture: its name.
      layer_norm_eps: its LayerNorms' epsilon, which no argument sets.
      class_row: whether its position table has a row for the class token.
      layout: the title of its layout (layouts.py).
      gelu: its MLPs' function, if no argument sets it.
      arguments: further ones of its class.
    """

    architecture: str
    layer_norm_eps: float
    class_row: bool = True
    layout: str = "timm ViT"
    gelu: str = ""
    arguments: Mapping[str, Any] = {}


_TOKEN = {"global_pool": "token"}
_TIMM: dict[tuple[str, ...], _TimmModel] = {
    (): _TimmModel("vit_base_patch16_224", 1e-6),
    ("LayerScale",): _TimmModel("vit_base_patch16_224", 1e-6),
    ("LayerScale", "registers"): _TimmModel("vit_small_patch14_reg4_dinov2", 1e-6, False),
    ("a norm before its blocks",): _TimmModel("vit_base_patch16_clip_quickgelu_224", 1e-5),
    ("an attention pooling head", "no class token"): _TimmModel(
        "vit_base_patch16_siglip_224", 1e-6
    ),
    ("LayerScale", "registers", "no position table"): _TimmModel(
        "vit_small_patch16_dinov3_qkvb", 1e-5, True, "timm DINOv3", "exact", _TOKEN
    ),
    ("LayerScale", "registers", "gated MLPs", "no position table"): _TimmModel(
        "vit_small_plus_patch16_dinov3_qkvb",
        1e-5,
        layout="timm DINOv3 with gated MLPs",
        gelu="silu",
        arguments=_TOKEN,
    ),
    BEIT: _TimmModel("beit_base_patch16_224", 1e-6, layout="timm BEiT", gelu="exact"),
}


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
    model = timm_model(config)
    side = metadata.get("image_size") or config.image_size
    _check_side(config, side)
    architecture, tensors = _timm_tensors(model, base, config, side)
    classes = 0
    if (head := base.get("head")) is not None:
        tensors["head.weight"] = head_weight(head, False)
        tensors["head.bias"] = np.asarray(head["bias"], np.float32)
        classes = len(head["bias"])
    pictures = preprocessor(metadata, config.image_size)
    settings = {
        "architecture": architecture,
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
    model: _TimmModel, base: Base, config: ViTConfig, side: int
) -> tuple[str, dict[str, np.ndarray]]:
    """The architecture's name, and the ViT's tensors."""
    architecture, tensors = model.architecture, _tensors(model.layout, base, config, side, "")
    biases = {k: v for k, v in tensors.items() if k.endswith(("attn.q_bias", "attn.v_bias"))}
    if architecture.endswith("_qkvb") and not any(v.any() for v in biases.values()):
        # As in the published DINOv3. Such a model's query, key and value are a plain layer, which
        # PEFT can change; with biases the model reads the layer's weight past it.
        architecture = architecture.removesuffix("_qkvb")
        tensors = {k: v for k, v in tensors.items() if k not in biases}
    if not model.class_row:  # the class token takes its row with it
        table, token = tensors["pos_embed"], tensors["cls_token"]
        tensors["cls_token"], tensors["pos_embed"] = token + table[:, :1], table[:, 1:].copy()
    return architecture, tensors


def timm_model(config: ViTConfig) -> _TimmModel:
    """The model of timm for a ViT. Raises UserError if there is none."""
    kind = kind_of(config)
    if kind not in _TIMM:
        raise UserError(
            f"This ViT has {', '.join(kind)}, which is not written for timm. Export it with "
            "--format onnx or stablehlo."
        )
    model = _TIMM[kind]
    if model.gelu not in ("", config.gelu):
        raise UserError(
            f"The MLPs of timm's {model.architecture} have the function {model.gelu!r}, and this "
            f"ViT has {config.gelu!r}. Export it with --format onnx or stablehlo."
        )
    return model


def _check_side(config: ViTConfig, side: int) -> None:
    """Raises UserError for a BEiT on images of another side than its tables are for."""
    if config.positions == "relative" and side != config.image_size:
        raise UserError(
            f"The relative positions are those of images of {config.image_size} pixels, and the "
            f"task's have {side}: other libraries take other tables for them. Export it with "
            "--format onnx or stablehlo."
        )


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
    for parameter, value in flat({k: v for k, v in base.items() if k != "head"}).items():
        if parameter == "embedding/bias" and not config.patch_bias:
            continue
        if parameter == _KEY_BIAS and not config.key_bias:
            continue
        array = np.asarray(value, np.float32)
        if parameter == TABLE:
            grid, single = side // config.patch_size, int(config.class_token)
            table = resize_positions(jnp.asarray(array), grid, single, config.table_resize)
            array = np.asarray(table)
        layers = enumerate(array) if "encoderblock" in parameter else [(None, array)]
        for layer, one in layers:
            name, (part, _) = layout.tensor(parameter, layer)
            if not config.key_bias and name.endswith("attn.qkv.bias"):  # timm's, of q and v alone
                name, part = name.replace("qkv.bias", "qkv"[part] + "_bias"), 0
            if parameter.endswith("kernel"):
                one = one.transpose((3, 2, 0, 1) if one.ndim == 4 else (1, 0))
            parts.setdefault(prefix + name, {})[part] = one
    return {
        name: np.ascontiguousarray(np.concatenate([those[i] for i in sorted(those)]))
        for name, those in parts.items()
    }
