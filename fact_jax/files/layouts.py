"""How published checkpoints name a ViT's parameters, as data.

Ours are the names of the Google `.npz` files. A `Layout` gives, for each of them, the file's name
and how the file stores it; `{}` is the number of the block.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fact_jax.backbone.parameters import MAP_HEAD

_BLOCK = "Transformer/encoderblock/"
_ATTENTION = "MultiHeadDotProductAttention_1"
_NORM = ("scale", "bias")
# Our names of what the network has before and after its blocks, and of a block's modules.
_OUTER = (
    *("cls", "Transformer/posembed_input/pos_embedding", "embedding/kernel", "embedding/bias"),
    *(f"Transformer/encoder_norm/{leaf}" for leaf in _NORM),
)
PRE_NORM = "Transformer/pre_norm"
_NORMS = ("LayerNorm_0", "LayerNorm_2")
_DENSE = (
    *(f"{_ATTENTION}/{name}" for name in ("query", "key", "value", "out")),
    *("MlpBlock_3/Dense_0", "MlpBlock_3/Dense_1"),
)
# Modules of the attention pooling head.
_POOLING_NORM = "LayerNorm_0"
_POOLING = (
    *(f"MultiHeadDotProductAttention_0/{name}" for name in ("query", "key", "value", "out")),
    *("MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one kind of file.

    Attributes:
      title: the kind, for messages.
      names: from our parameter to the file's tensor. ``name#i/n`` is part i of n along the first
        axis (query, key and value in one tensor). No ViT has all of them.
      torch: matrices are stored [out, in] and the patch embedding [d, 3, y, x].
      dropped: pattern of further tensors, which class-token features do not need.
      layer_norm_eps: LayerNorm's epsilon of these models, unless a config.json says otherwise.
        None: the variant's.
      distillation: name of DeiT's distillation token, with a row of its own in the table.
    """

    title: str
    names: Mapping[str, str]
    torch: bool
    dropped: str
    layer_norm_eps: float | None = None
    distillation: str = ""

    @property
    def patch(self) -> str:
        return self.names["embedding/kernel"]

    def tensor(self, parameter: str, layer: int | None = None) -> tuple[str, tuple[int, int]]:
        """The file's tensor of our parameter; the parameter is part i of n, returned as (i, n)."""
        name, _, part = self.names[parameter].partition("#")
        i, _, n = (part or "0/1").partition("/")
        return (name if layer is None else name.format(layer)), (int(i), int(n))


def _google_names() -> dict[str, str]:
    inner = [f"{norm}/{leaf}" for norm in _NORMS for leaf in _NORM]
    inner += [f"{module}/{leaf}" for module in _DENSE for leaf in ("kernel", "bias")]
    inner += ["LayerScale_0", "LayerScale_1", "MlpBlock_3/Gate/kernel", "MlpBlock_3/Gate/bias"]
    inner += ["relative_positions"]
    blocks = {_BLOCK + name: f"Transformer/encoderblock_{{}}/{name}" for name in inner}
    head = (f"{MAP_HEAD}/{n}" for n in ("probe", *_leaves(_POOLING_NORM, *_POOLING)))
    outer = (*_OUTER, "registers", *_leaves(PRE_NORM), *head)
    return {**{name: name for name in outer}, **blocks}


def _leaves(*modules: str) -> list[str]:
    """Our names of the parameters of norms and dense layers."""
    firsts = ("scale" if "norm" in m.lower() else "kernel" for m in modules)
    return [
        f"{m}/{leaf}" for m, first in zip(modules, firsts, strict=True) for leaf in (first, "bias")
    ]


def _torch_names(
    outer: Sequence[str], block: str, modules: Sequence[str], scales: str
) -> dict[str, str]:
    """Names of a PyTorch model from those of its modules; kernels and scales are 'weight' there.

    Args:
      outer: the class token, the position table, the patch embedding and the last norm.
      block: what the names of a block begin with.
      modules: of a block, in the order of `_NORMS` and `_DENSE`.
      scales: LayerScale's gains, numbered from 1.
    """
    cls, table, patch, norm = outer
    outside = (cls, table, *(f"{m}.{leaf}" for m in (patch, norm) for leaf in ("weight", "bias")))
    names = dict(zip(_OUTER, outside, strict=True))
    inner = zip((*_NORMS, *_DENSE), modules, strict=True)
    names |= _modules({_BLOCK + ours: block + theirs for ours, theirs in inner})
    for i in (0, 1):
        names[f"{_BLOCK}LayerScale_{i}"] = block + scales.format(i + 1)
    return names


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Names of parameters from those of PyTorch's modules, ours first."""
    out = {}
    for ours, theirs in names.items():
        module, _, part = theirs.partition("#")
        joint = "_" if module.endswith("in_proj") else "."  # of torch.nn.MultiheadAttention
        for leaf in _leaves(ours):
            out[leaf] = f"{module}{joint}{'bias' if leaf.endswith('bias') else 'weight'}"
            out[leaf] += part and f"#{part}"
    return out


def _pooling(head: str, probe: str, norm: str, modules: Sequence[str]) -> dict[str, str]:
    """Names of the attention pooling head, its modules in the order of `_POOLING`."""
    names = dict(zip((_POOLING_NORM, *_POOLING), (norm, *modules), strict=True))
    inner = {f"{MAP_HEAD}/{ours}": head + theirs for ours, theirs in names.items()}
    return {f"{MAP_HEAD}/probe": head + probe, **_modules(inner)}


_HF_OUTER = (
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection",
    "layernorm",
)
_HF_NORMS = ("layernorm_before", "layernorm_after")
_HF_ATTENTION = (
    *(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
)
# Names of the modules in transformers 5, which a state dict has that it did not save itself.
_HF5_ATTENTION = tuple(f"attention.{name}_proj" for name in "qkvo")
_TIMM_NORMS = ("norm1", "norm2")
_TIMM_ATTENTION = ("attn.qkv#0/3", "attn.qkv#1/3", "attn.qkv#2/3", "attn.proj")
_MLP = ("mlp.fc1", "mlp.fc2")
_HF_VIT = (*_HF_NORMS, *_HF_ATTENTION, "intermediate.dense", "output.dense")
_HF5_VIT = (*_HF_NORMS, *_HF5_ATTENTION, *_MLP)
_DINOV2 = (*_TIMM_NORMS, *_HF_ATTENTION, *_MLP)
_DINOV2_5 = (*_TIMM_NORMS, *_HF5_ATTENTION, *_MLP)
_BIAS = "relative_position_bias.relative_position_bias_table"
_HF_SCALES = "layer_scale{}.lambda1"
_HF_DROPPED = r"(classifier|cls_classifier|distillation_classifier|pooler|decoder|lm_head)\..*|"
_HF_DROPPED += r"embeddings\.(mask_token|distillation_token)"


def _hugging_face(title: str, block: str, modules: Sequence[str], **changes: Any) -> Layout:
    names = _torch_names(_HF_OUTER, block, modules, _HF_SCALES)
    return Layout(title, {**names, **changes.pop("more", {})}, True, _HF_DROPPED, **changes)


# transformers' ViT, DeiT and MAE models.
_HF_CLASS: dict[str, Any] = {
    "layer_norm_eps": 1e-12,
    "distillation": "embeddings.distillation_token",
}
_HF_REGISTERS = {"registers": "embeddings.register_tokens"}


def _dinov3(title: str, block: str) -> Layout:
    outer = ("embeddings.cls_token", "no table", "embeddings.patch_embeddings", "norm")
    modules = (*_TIMM_NORMS, *_HF5_ATTENTION, "mlp.up_proj", "mlp.down_proj")
    names = _torch_names(outer, block, modules, _HF_SCALES)
    names |= {**_HF_REGISTERS, **_modules({f"{_BLOCK}MlpBlock_3/Gate": f"{block}mlp.gate_proj"})}
    return Layout(title, names, True, _HF_DROPPED)


def _clip() -> Layout:
    """transformers' CLIP and SigLIP have the same names."""
    table, patches = "embeddings.position_embedding.weight", "embeddings.patch_embedding"
    outer = ("embeddings.class_embedding", table, patches, "post_layernorm")
    attention = (f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    modules = ("layer_norm1", "layer_norm2", *attention, *_MLP)
    names = _torch_names(outer, "encoder.layers.{}.", modules, "no scale {}")
    inside = (*(f"attention.in_proj#{i}/3" for i in range(3)), "attention.out_proj", *_MLP)
    names |= _modules({PRE_NORM: "pre_layrnorm"})
    names |= _pooling("head.", "probe", "layernorm", inside)
    dropped = r"embeddings\.position_ids|visual_projection\.weight|classifier\..*"
    return Layout("Hugging Face CLIP or SigLIP", names, True, dropped)


def _beit(title: str, block: str, modules: Sequence[str], table: str) -> Layout:
    outer = (*_HF_OUTER[:3], "pooler.layernorm")
    names = _torch_names(outer, block, modules, "lambda_{}")
    names[f"{_BLOCK}relative_positions"] = block + table
    dropped = rf"{_HF_DROPPED}|.*relative_position_index"
    return Layout(title, names, True, dropped, layer_norm_eps=1e-12)


def _timm_beit() -> Layout:
    outer, block = ("cls_token", "no table", "patch_embed.proj", "fc_norm"), "blocks.{}."
    modules = (*_TIMM_NORMS, *_TIMM_ATTENTION, *_MLP)
    names = _torch_names(outer, block, modules, "gamma_{}")
    names[f"{_BLOCK}relative_positions"] = f"{block}attn.relative_position_bias_table"
    for ours, theirs in zip(("query", "key", "value"), "qkv", strict=True):
        names[f"{_BLOCK}{_ATTENTION}/{ours}/bias"] = f"{block}attn.{theirs}_bias"
    return Layout("timm BEiT", names, True, r"head\..*|mask_token|.*relative_position_index")


def _timm(title: str, scales: str, fc1: str = "mlp.fc1", gate: str = "") -> Layout:
    """timm, and the original DeiT, MAE and DINOv2 files, whose naming it shares."""
    names = _torch_names(
        ("cls_token", "pos_embed", "patch_embed.proj", "norm"),
        "blocks.{}.",
        (*_TIMM_NORMS, *_TIMM_ATTENTION, fc1, "mlp.fc2"),
        scales,
    )
    names |= {"registers": "reg_token", **_modules({PRE_NORM: "norm_pre"})}
    names |= _pooling("attn_pool.", "latent", "norm", ("q", "kv#0/2", "kv#1/2", "proj", *_MLP))
    if gate:
        names |= _modules({f"{_BLOCK}MlpBlock_3/Gate": f"blocks.{{}}.{gate}"})
    dropped = r"(head|head_dist|pre_logits)\..*|mask_token|dist_token|decoder_.*"
    return Layout(title, names, True, dropped, distillation="dist_token")


LAYOUTS: tuple[Layout, ...] = (
    Layout("Google .npz", _google_names(), False, r"(head|pre_logits)/.*"),
    _hugging_face("Hugging Face ViT", "encoder.layer.{}.", _HF_VIT, **_HF_CLASS),
    _hugging_face("Hugging Face Dinov2", "encoder.layer.{}.", _DINOV2, more=_HF_REGISTERS),
    _hugging_face("Hugging Face ViT, transformers 5", "layers.{}.", _HF5_VIT, **_HF_CLASS),
    _hugging_face(
        "Hugging Face Dinov2, transformers 5", "encoder.layer.{}.", _DINOV2_5, more=_HF_REGISTERS
    ),
    _dinov3("Hugging Face DINOv3", "layer.{}."),
    _dinov3("Hugging Face DINOv3, transformers 5", "model.layer.{}."),
    _clip(),
    _beit("Hugging Face BEiT", "encoder.layer.{}.", _HF_VIT, f"attention.attention.{_BIAS}"),
    _beit("Hugging Face BEiT, transformers 5", "layers.{}.", _HF5_VIT, _BIAS),
    _timm_beit(),
    _timm("timm ViT", "ls{}.gamma"),
    _timm("timm DINOv3", "gamma_{}"),
    _timm("timm DINOv3 with gated MLPs", "gamma_{}", "mlp.fc1_x", "mlp.fc1_g"),
)


def find_layouts(names: Iterable[str]) -> list[tuple[Layout, str]]:
    """The ViTs of a file with these tensors: layouts, with the prefixes of the names ('vit.').

    A layout is recognised by its patch embedding and the first block's norm and query. If several
    fit, the one with the most of its tensors in the file is taken. A file may hold several ViTs,
    such as a student and a teacher.
    """
    names = set(names)
    signs = (f"{_BLOCK}LayerNorm_0/scale", f"{_BLOCK}{_ATTENTION}/query/kernel")
    vits: dict[str, list[Layout]] = {}
    for layout in LAYOUTS:
        first = {layout.tensor(sign, 0)[0] for sign in signs}
        for name in sorted(names):
            prefix = name.removesuffix(layout.patch)
            if prefix != name and {prefix + sign for sign in first} <= names:
                vits.setdefault(prefix, []).append(layout)
    return [
        (max(several, key=lambda layout: _held(layout, prefix, names)), prefix)
        for prefix, several in sorted(vits.items())
    ]


def _held(layout: Layout, prefix: str, names: set[str]) -> int:
    """The number of a layout's tensors that a file has, of the blocks only the first one's."""
    return sum(prefix + layout.tensor(parameter, 0)[0] in names for parameter in layout.names)


def unknown_tensors(layout: Layout, prefix: str, names: Iterable[str], used: set[str]) -> list[str]:
    """Tensors of the ViT that were not read: the file holds another architecture.

    Tensors outside the prefix belong to a head or a decoder, and do not count.
    """
    left = [n.removeprefix(prefix) for n in names if n.startswith(prefix) and n not in used]
    return sorted(name for name in left if not re.fullmatch(layout.dropped, name))
