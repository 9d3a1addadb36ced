"""How published checkpoints name a ViT's parameters, as data.

Ours are the names of the Google `.npz` files. A `Layout` gives, for each of them, the file's name
and how the file stores it; `{}` is the number of the block.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BLOCK = "Transformer/encoderblock/"
_ATTENTION = "MultiHeadDotProductAttention_1"
_NORM = ("scale", "bias")
# Our names of what the network has before and after its blocks, and of a block's modules.
_OUTER = (
    *("cls", "Transformer/posembed_input/pos_embedding", "embedding/kernel", "embedding/bias"),
    *(f"Transformer/encoder_norm/{leaf}" for leaf in _NORM),
)
_NORMS = ("LayerNorm_0", "LayerNorm_2")
_DENSE = (
    *(f"{_ATTENTION}/{name}" for name in ("query", "key", "value", "out")),
    *("MlpBlock_3/Dense_0", "MlpBlock_3/Dense_1"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one kind of file.

    Attributes:
      title: the kind, for messages.
      names: from our parameter to the file's tensor. ``name#i`` is part i of three along the
        first axis (query, key and value in one tensor).
      torch: matrices are stored [out, in] and the patch embedding [d, 3, y, x].
      dropped: pattern of further tensors, which class-token features do not need.
      layer_norm_eps: LayerNorm's epsilon of these models, unless a config.json says otherwise.
      distillation: name of DeiT's distillation token, with a row of its own in the table.
    """

    title: str
    names: Mapping[str, str]
    torch: bool
    dropped: str
    layer_norm_eps: float = 1e-6
    distillation: str = ""

    @property
    def patch(self) -> str:
        return self.names["embedding/kernel"]

    @property
    def table(self) -> str:
        return self.names["Transformer/posembed_input/pos_embedding"]

    def tensor(self, parameter: str, layer: int | None = None) -> tuple[str, int | None]:
        """The file's tensor of our parameter, and its third that is the parameter (None: all)."""
        name, _, part = self.names[parameter].partition("#")
        return (name if layer is None else name.format(layer)), (int(part) if part else None)


def _google_names() -> dict[str, str]:
    inner = [f"{norm}/{leaf}" for norm in _NORMS for leaf in _NORM]
    inner += [f"{module}/{leaf}" for module in _DENSE for leaf in ("kernel", "bias")]
    inner += ["LayerScale_0", "LayerScale_1"]
    blocks = {_BLOCK + name: f"Transformer/encoderblock_{{}}/{name}" for name in inner}
    return {**dict(zip(_OUTER, _OUTER, strict=True)), **blocks}


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
    for ours, theirs in zip((*_NORMS, *_DENSE), modules, strict=True):
        module, _, part = theirs.partition("#")
        for leaf in _NORM if ours in _NORMS else ("kernel", "bias"):
            weight = "bias" if leaf == "bias" else "weight"
            names[f"{_BLOCK}{ours}/{leaf}"] = f"{block}{module}.{weight}" + (part and f"#{part}")
    for i in (0, 1):
        names[f"{_BLOCK}LayerScale_{i}"] = block + scales.format(i + 1)
    return names


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
_TIMM_ATTENTION = ("attn.qkv#0", "attn.qkv#1", "attn.qkv#2", "attn.proj")
_MLP = ("mlp.fc1", "mlp.fc2")
_HF_VIT = (*_HF_NORMS, *_HF_ATTENTION, "intermediate.dense", "output.dense")
_HF5_VIT = (*_HF_NORMS, *_HF5_ATTENTION, *_MLP)
_DINOV2 = (*_TIMM_NORMS, *_HF_ATTENTION, *_MLP)
_DINOV2_5 = (*_TIMM_NORMS, *_HF5_ATTENTION, *_MLP)
_HF_SCALES = "layer_scale{}.lambda1"
_HF_DROPPED = r"(classifier|cls_classifier|distillation_classifier|pooler|decoder|lm_head)\..*|"
_HF_DROPPED += r"embeddings\.(mask_token|distillation_token)"


def _hugging_face(title: str, block: str, modules: Sequence[str], **changes: Any) -> Layout:
    names = _torch_names(_HF_OUTER, block, modules, _HF_SCALES)
    return Layout(title, names, True, _HF_DROPPED, **changes)


# transformers' ViT, DeiT and MAE models.
_HF_CLASS: dict[str, Any] = {
    "layer_norm_eps": 1e-12,
    "distillation": "embeddings.distillation_token",
}

LAYOUTS: tuple[Layout, ...] = (
    Layout("Google .npz", _google_names(), False, r"(head|pre_logits)/.*"),
    _hugging_face("Hugging Face ViT", "encoder.layer.{}.", _HF_VIT, **_HF_CLASS),
    _hugging_face("Hugging Face Dinov2", "encoder.layer.{}.", _DINOV2),
    _hugging_face("Hugging Face ViT, transformers 5", "layers.{}.", _HF5_VIT, **_HF_CLASS),
    _hugging_face("Hugging Face Dinov2, transformers 5", "encoder.layer.{}.", _DINOV2_5),
    # timm, and the original DeiT, MAE and DINOv2 files, whose naming it shares.
    Layout(
        "timm ViT",
        _torch_names(
            ("cls_token", "pos_embed", "patch_embed.proj", "norm"),
            "blocks.{}.",
            (*_TIMM_NORMS, *_TIMM_ATTENTION, *_MLP),
            "ls{}.gamma",
        ),
        True,
        r"(head|head_dist|pre_logits)\..*|mask_token|dist_token|decoder_.*",
        distillation="dist_token",
    ),
)


def find_layouts(names: Iterable[str]) -> list[tuple[Layout, str]]:
    """The ViTs of a file with these tensors: layouts, with the prefixes of the names ('vit.').

    A layout is recognised by its patch embedding and the first block's norm and query. A file may
    hold several ViTs, such as a student and a teacher.
    """
    names = set(names)
    vits = []
    for layout in LAYOUTS:
        signs = ("LayerNorm_0/scale", f"{_ATTENTION}/query/kernel")
        first = {layout.tensor(_BLOCK + sign, 0)[0] for sign in signs}
        for name in sorted(names):
            prefix = name.removesuffix(layout.patch)
            if prefix != name and {prefix + sign for sign in first} <= names:
                vits.append((layout, prefix))
    return sorted(vits, key=lambda pair: pair[1])


def unknown_tensors(layout: Layout, prefix: str, names: Iterable[str], used: set[str]) -> list[str]:
    """Tensors of the ViT that were not read: the file holds another architecture.

    Tensors outside the prefix belong to a head or a decoder, and do not count.
    """
    left = [n.removeprefix(prefix) for n in names if n.startswith(prefix) and n not in used]
    return sorted(name for name in left if not re.fullmatch(layout.dropped, name))
