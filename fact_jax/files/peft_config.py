"""PEFT's `adapter_config.json`: what is read, what is refused by name, and the base model."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, TypedDict

from fact_jax.backbone.config import VARIANTS
from fact_jax.errors import UserError
from fact_jax.files.guards import MAX_CONFIG_BYTES
from fact_jax.files.json_reader import read_json
from fact_jax.files.schema import Between
from fact_jax.images.preprocessing import PREPROCESSING

CONFIG = "adapter_config.json"
_Number = Annotated[float, Between(-1e9, 1e9)]


class AdapterConfig(TypedDict, total=False):
    """The entries that the increments depend on."""

    peft_type: str | None
    r: Annotated[int, Between(1, 65_536)]
    lora_alpha: _Number | None
    use_rslora: bool | None
    use_dora: bool | None
    alpha_pattern: dict[str, _Number] | None
    base_model_name_or_path: str | None
    init_lora_weights: Any


# Entries that make of LoRA something else, unless they are absent, false or empty.
_REFUSED: dict[str, str] = {
    "lora_bias": "LoRA with biases",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA, which pools the layers' inputs",
    "layer_replication": "LoRA on replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow, which routes between several adapters",
    "kasa_config": "KaSA, which truncates the frozen weights",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "target_parameters": "LoRA on parameters that are no dense layers",
    "trainable_token_indices": "trained token embeddings",
    "enable_lora": "LoRA in the fused form of PEFT 0.2",
}
# Ways to begin that change the frozen weights, too, so that the adapter does not say all of it.
_CHANGING = re.compile(r"(pissa.*|olora|corda|loftq|lora_ga)", re.IGNORECASE)


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter directory.

    Raises:
      UserError: it is damaged, or the adapter is neither LoRA nor DoRA in plain form; the message
        says what it is.
    """
    path = folder / CONFIG
    config: dict[str, Any] = read_json(
        path, schema=AdapterConfig, max_bytes=MAX_CONFIG_BYTES, allow_nan=True
    )
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(f"{path} is an adapter of type {kind!r:.50}; only LORA is read here.")
    what = next((text for entry, text in _REFUSED.items() if config.get(entry)), "")
    if (bias := config.get("bias", "none")) != "none":
        what = f"LoRA with trained biases (bias {bias!r:.20})"
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and _CHANGING.fullmatch(begun):
        what = f"LoRA begun as {begun[:30]!r}, which changes the frozen weights, too"
    if what:
        raise UserError(
            f"{path} is {what}; only LoRA and DoRA are read here. Merge it in Python, "
            "model.merge_and_unload().save_pretrained('merged'), and give that folder as --weights."
        )
    adapter: AdapterConfig = config  # type: ignore[assignment]
    return adapter


def scaling(config: AdapterConfig, module: str, rank: int) -> float:
    """The number that B A is multiplied by in a dense layer of this name.

    The rank is that of the tensors, with which PEFT's `rank_pattern` agrees.

    Raises:
      UserError: `alpha_pattern` has a regular expression that is no plain name.
    """
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _matches(pattern, module):
            alpha = value
            break
    alpha = 8 if alpha is None else alpha  # PEFT's default
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
    """Whether a key of `alpha_pattern` names this layer.

    PEFT takes keys for regular expressions. Someone else's could take for ever to match, so that
    plain names alone are read; a ``^`` ties them to the beginning.
    """
    if not re.fullmatch(r"\^?(\w|\\?\.)+\$?", pattern):
        raise UserError(
            f"its alpha_pattern has the expression {pattern[:80]!r}; expected names of layers"
        )
    name = pattern.strip("^$").replace("\\.", ".")
    whole = pattern.startswith("^")
    return module == name or (not whole and module.endswith(f".{name}"))


_SIZES = {
    **{"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"},
    **{"ti": "ti", "s": "s", "b": "b", "l": "l", "h": "h"},
}
# Names of base models, and our variant's name with {size} and {patch}. Other weights than Google's
# and DeiT's have such names, too, with other ends: CLIP's, DINO's, SigLIP's, MAE's.
_PLAIN = r"[-_](?P<size>[a-z]+)[-_]patch(?P<patch>\d+)[-_](224|384)"
_BASES = (
    (re.compile(rf"vit{_PLAIN}([-_]in21k)?(\.(augreg|orig)\w*)?$"), "vit_{size}{patch}"),
    (re.compile(rf"deit{_PLAIN}(\.fb_in1k)?$"), "vit_{size}{patch}"),
    (re.compile(r"beit[-_](?P<size>[a-z]+)[-_]patch(?P<patch>\d+)[-_]"), "beit_{size}{patch}"),
    (re.compile(r"vit[-_]mae[-_](?P<size>[a-z]+)$"), "mae_{size}16"),
    (re.compile(r"dinov2[-_](?P<size>[a-z]+)$"), "dinov2_{size}14"),
    (re.compile(r"dinov2[-_]with[-_]registers[-_](?P<size>[a-z]+)$"), "dinov2_{size}14_reg"),
    (
        re.compile(r"dinov3[-_]vit(?P<size>[a-z])(?P<patch>\d+(?:plus)?)[-_]"),
        "dinov3_{size}{patch}",
    ),
)
_SIDE = re.compile(r"patch\d+[-_](\d{2,4})(?!\d)")


def base_variant(name: str | None) -> str | None:
    """Our variant of a base model's name, such as google/vit-base-patch16-224; None if unknown."""
    last = (name or "").rstrip("/").rpartition("/")[2].lower()[:200]
    for pattern, variant in _BASES:
        if match := pattern.match(last):
            parts = match.groupdict()
            named = variant.format(**{**parts, "size": _SIZES.get(parts["size"])})
            return named if named in VARIANTS else None
    return None


def base_preprocessing(name: str | None) -> dict[str, Any]:
    """Normalisation and image size that a base model's name stands for, as far as it says them."""
    name = (name or "").lower()[-200:]
    preprocessing: dict[str, Any] = {}
    variant = base_variant(name)
    if "deit" in name:  # our variant's published weights are Google's
        preprocessing["normalisation"] = "imagenet"
    elif variant in PREPROCESSING:
        published = PREPROCESSING[variant]
        preprocessing = {
            "normalisation": published.normalisation,
            "image_size": published.image_size,
        }
    if match := _SIDE.search(name):
        preprocessing["image_size"] = int(match[1])
    return preprocessing
