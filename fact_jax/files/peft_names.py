"""How PyTorch's ViTs name the dense layers that PEFT adapters change, as data.

Names of transformers 4 are those of most adapters on the Hub; transformers 5 renamed the modules.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fact_jax.errors import UserError


class Naming(NamedTuple):
    """Names of one model in one library.

    Attributes:
      title: the kind of model, for messages.
      models: names that may stand before a block's.
      block: what stands before a block's number.
      modules: a block's dense layers, by our sites. "qkv" is query, key and value in one layer.
      head: the classifier.
    """

    title: str
    models: tuple[str, ...]
    block: str
    modules: dict[str, str]
    head: str = "classifier"

    def module(self, site: str, layer: int | str) -> str:
        """The full name of a site's dense layer, the model's name included."""
        return ".".join(filter(None, (self.models[0], self.block, str(layer), self.modules[site])))


class Place(NamedTuple):
    """A site, "qkv" included, of a block."""

    site: str
    layer: int


_NEW = {site: f"attention.{site}_proj" for site in "qkvo"}
_OLD = {
    **{
        site: f"attention.attention.{name}"
        for site, name in zip("qkv", ("query", "key", "value"), strict=True)
    },
    "o": "attention.output.dense",
}
_TIMM = {"qkv": "attn.qkv", "o": "attn.proj"}
_MLP = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_VIT = ("vit", "deit", "beit")
_DINOV2 = ("dinov2", "dinov2_with_registers")

NAMINGS: dict[str, Naming] = {
    "vit_5": Naming("ViT in transformers 5", _VIT, "layers", {**_NEW, **_MLP}),
    "vit_4": Naming(
        "ViT in transformers 4",
        _VIT,
        "encoder.layer",
        {**_OLD, "fc1": "intermediate.dense", "fc2": "output.dense"},
    ),
    "dinov2_5": Naming("DINOv2 in transformers 5", _DINOV2, "encoder.layer", {**_NEW, **_MLP}),
    "dinov2_4": Naming("DINOv2 in transformers 4", _DINOV2, "encoder.layer", {**_OLD, **_MLP}),
    # Of a classifier around it: transformers has none of its own.
    "dinov3": Naming(
        "DINOv3 in transformers",
        ("model", "backbone", "dinov3_vit"),
        "layer",
        {**_NEW, "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"},
    ),
    "timm": Naming("ViT in timm", ("", "model"), "blocks", {**_TIMM, **_MLP}, "head"),
    "timm_gated": Naming(
        "ViT with gated MLPs in timm",
        ("", "model"),
        "blocks",
        {**_TIMM, "fc1": "mlp.fc1_x", "fc2": "mlp.fc2"},
        "head",
    ),
}


def find_naming(modules: Iterable[str]) -> tuple[Naming, dict[str, Place]]:
    """The naming that all dense layers have, and where each lies.

    Raises:
      UserError: they are those of no model that is known here.
    """
    modules = list(modules)
    stray = modules[0] if modules else ""
    for naming in NAMINGS.values():
        pattern = _pattern(naming)
        sites = {name: site for site, name in naming.modules.items()}
        matches = {name: pattern.fullmatch(name) for name in modules}
        if missing := [name for name, match in matches.items() if match is None]:
            stray = missing[0] if len(missing) < len(modules) else stray
            continue
        return naming, {name: Place(sites[m[2]], int(m[1])) for name, m in matches.items() if m}
    titles = ", ".join(naming.title for naming in NAMINGS.values())
    raise UserError(
        f"it changes {stray[:100]!r}, which is no dense layer of a model known here ({titles})"
    )


def _pattern(naming: Naming) -> re.Pattern[str]:
    """Matches a layer's full name: the block's number and the module are its groups."""
    models = "|".join(filter(None, naming.models))
    modules = "|".join(map(re.escape, naming.modules.values()))
    return re.compile(
        rf"(?:(?:[\w.]+\.)?(?:{models})\.)?{re.escape(naming.block)}\.(\d{{1,3}})\.({modules})"
    )


_KINDS = {  # signs of other adapters in the names of their tensors
    "lora_E": "AdaLoRA",
    "lora_embedding": "LoRA on embeddings",
    "lora_B.bias": "LoRA with biases",
}


def stray(name: str) -> str:
    """The reason why an adapter with a tensor of this name is not read."""
    for sign, what in _KINDS.items():
        if sign in name:
            return f"it is {what}; only LoRA and DoRA are read here"
    return (
        f"it trains {name[:100]!r}, which is neither a LoRA pair of a dense layer nor the head. "
        "Merge it in Python, model.merge_and_unload().save_pretrained('merged'), and give that "
        "folder as --weights"
    )
