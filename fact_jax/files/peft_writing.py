"""A trained task as an adapter of Hugging Face's PEFT, which `PeftModel.from_pretrained` opens.

Every task whose changes are low-rank increments becomes LoRA, and with norms of columns DoRA: for
each dense layer one pair, with all scales in B, so that PEFT's scaling is 1. FacT's pairs have
FacT's own rank, because the slices of a layer share U or V.
Letters: `l` layer, `d` in width, `e` out width, `r` rank, `g` groups.
"""

import dataclasses
from typing import Any

import numpy as np

from fact_jax.algebra.increments import other_parts
from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.beside import OURS, PREPROCESSOR, json_bytes, preprocessor
from fact_jax.files.card import Card, adapter_card
from fact_jax.files.factors import OF_THE_FILE, TrainedTask, check_classes
from fact_jax.files.hf_models import HFModel, hf_model
from fact_jax.files.model_folder import head_weight
from fact_jax.files.peft import PREFIX, TENSORS
from fact_jax.files.peft_config import CONFIG
from fact_jax.files.peft_names import NAMINGS, Naming
from fact_jax.files.timm_models import timm_model

NAMES = ("transformers5", "transformers4", "timm")
"""Libraries whose names of layers an adapter can have."""

_FUSED = ("q", "k", "v")

Arrays = tuple[np.ndarray, np.ndarray]  # A [l, d, r] and B [l, r, e]


def naming_of(names: str, config: ViTConfig) -> Naming:
    """The naming of a ViT in one of `NAMES`. Raises UserError if there is none."""
    if names == "timm":
        if timm_model(config).layout == "timm BEiT":
            raise UserError(
                "timm's BEiT reads the weights of its layers of query, key and value past PEFT, "
                "whose changes would have no effect. Export the adapter with the names of "
                "transformers, or the merged model with --format timm."
            )
        return NAMINGS["timm_gated" if config.mlp == "gated" else "timm"]
    kind = hf_model(config).model_type
    generation = names.removeprefix("transformers")
    naming = NAMINGS[f"{'dinov2' if kind.startswith('dinov2') else 'vit'}_{generation}"]
    return naming._replace(models=(kind,))


def adapter_files(
    task: TrainedTask, config: ViTConfig, card: Card, names: str = NAMES[0]
) -> dict[str, bytes]:
    """The files of an adapter directory, by their names.

    Args:
      task: a trained task.
      config: of the ViT that it was trained on.
      card: facts for the model card.
      names: one of `NAMES`.

    Raises:
      UserError: the task changes more than low-rank increments can say, or changes nothing.
    """
    check_classes(str(task.path), task.num_classes)
    adaptation = task.method.adaptation(task.factors, config)
    if parts := other_parts(dataclasses.replace(adaptation, magnitudes={})):
        raise UserError(
            f"{task.path} has {', '.join(parts)}, which are no low-rank increments, so that PEFT's "
            "LoRA cannot hold them. If they merge into the weights, export the merged model with "
            "--format hf; else predict and serve the factor file as it is."
        )
    naming = naming_of(names, config)
    model = None if names == "timm" else hf_model(config)
    pairs = {site: _pair(adaptation, site, config) for site in naming.modules}
    present = {site: pair for site, pair in pairs.items() if pair is not None}
    if not present:
        raise UserError(
            f"{task.path} has no increments, only a head. Export the whole model with --format hf."
        )
    rank = max(a.shape[2] for a, _ in present.values())
    norms = _norms(adaptation, list(present), str(task.path))
    tensors = {
        **_head(task, naming, model),
        **_tensors({site: _padded(pair, rank) for site, pair in present.items()}, naming),
        **_norm_tensors(norms, naming),
    }
    metadata = {k: v for k, v in task.metadata.items() if k not in OF_THE_FILE}
    files = {
        CONFIG: json_bytes(
            _config(naming, model, list(present), rank)
            | {"base_model_name_or_path": card.base_model, "use_dora": bool(norms)}
        ),
        TENSORS[0]: _file_bytes(tensors),
        OURS: json_bytes({**metadata, "vit": task.metadata["vit"], "method": card.method}),
        PREPROCESSOR: json_bytes(preprocessor(metadata, config.image_size)),
    }
    readme = adapter_card(card, rank, names, model.architecture if model else "")
    return {**files, "README.md": readme.encode()}


def _file_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    content: bytes = save(tensors, metadata={"format": "pt"})
    return content


def _config(naming: Naming, model: HFModel | None, sites: list[str], rank: int) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    The layers are named by one regular expression: 'output.dense', a layer of the MLP in
    transformers 4, is also the end of the name of attention's output.
    """
    modules = "|".join(naming.modules[site].replace(".", r"\.") for site in sites)
    block = naming.block.replace(".", r"\.")
    mapping = None
    if model is not None:
        mapping = {"base_model_class": model.architecture, "parent_library": model.library}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": mapping,
        "r": rank,
        "lora_alpha": rank,  # B has the scale
        "lora_dropout": 0.0,
        "target_modules": rf"(.*\.)?{block}\.\d+\.({modules})",
        "modules_to_save": [naming.head],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _head(task: TrainedTask, naming: Naming, model: HFModel | None) -> dict[str, np.ndarray]:
    """The classifier's tensors."""
    return {
        f"{PREFIX}{naming.head}.weight": head_weight(
            task.head, model is not None and model.reads_patches
        ),
        f"{PREFIX}{naming.head}.bias": np.asarray(task.head["bias"], np.float32),
    }


def _tensors(pairs: dict[str, Arrays], naming: Naming) -> dict[str, np.ndarray]:
    """The tensors of all layers, which PyTorch stores as A [r, d] and B [e, r]."""
    tensors = {}
    for site, arrays in pairs.items():
        for letter, stacked in zip("AB", arrays, strict=True):
            for layer, array in enumerate(stacked):
                name = f"{PREFIX}{naming.module(site, layer)}.lora_{letter}.weight"
                tensors[name] = np.ascontiguousarray(array.T, np.float32)
    return tensors


def _norms(adaptation: Adaptation, sites: list[str], path: str) -> dict[str, np.ndarray]:
    """DoRA's norms [l, e] of the columns of each layer of an adapter; empty for LoRA.

    Raises:
      UserError: some layers of the adapter have norms, and others have none.
    """
    given = adaptation.magnitudes
    if not given:
        return {}
    parts = {site: _FUSED if site == "qkv" else (site,) for site in sites}
    if set(given) != {name for names in parts.values() for name in names}:
        raise UserError(
            f"{path} sets the norms of the columns of {', '.join(given)}, and PEFT's DoRA sets "
            f"those of all layers of the adapter, {', '.join(sites)}. Export the adapter with the "
            "names of transformers, or the merged model with --format hf."
        )
    return {
        site: np.concatenate([np.asarray(given[name], np.float32) for name in names], axis=1)
        for site, names in parts.items()
    }


def _norm_tensors(norms: dict[str, np.ndarray], naming: Naming) -> dict[str, np.ndarray]:
    return {
        f"{PREFIX}{naming.module(site, layer)}.lora_magnitude_vector": row
        for site, rows in norms.items()
        for layer, row in enumerate(rows)
    }


def _padded(pair: Arrays, rank: int) -> Arrays:
    """The pair with zeros up to a rank: PEFT's layers then need no pattern of ranks."""
    a, b = pair
    more = rank - a.shape[2]
    return np.pad(a, ((0, 0), (0, 0), (0, more))), np.pad(b, ((0, 0), (0, more), (0, 0)))


def _pair(adaptation: Adaptation, site: str, config: ViTConfig) -> Arrays | None:
    """All pairs of a dense layer as one; None if nothing changes it."""
    if site != "qkv":
        parts = [_plain(pair) for pair in adaptation.site(site)]
    else:
        together = adaptation.qkv or ()
        together = (together,) if isinstance(together, LowRank) else together
        parts = [_plain(pair) for pair in together]
        for i, name in enumerate(_FUSED):
            own = getattr(adaptation, name) or ()
            for pair in (own,) if isinstance(own, LowRank) else own:
                a, b = _plain(pair)
                d = config.width
                parts.append((a, np.pad(b, ((0, 0), (0, 0), (i * d, (2 - i) * d)))))
    if not parts:
        return None
    return np.concatenate([a for a, _ in parts], 2), np.concatenate([b for _, b in parts], 1)


def _plain(pair: LowRank) -> Arrays:
    """A pair without groups of columns, of the smaller rank of two forms.

    ``u`` is the first factor of all groups at once, of rank r'; otherwise the groups' own first
    factors stand side by side, of rank g r.
    """
    a, b = np.asarray(pair.a, np.float64), np.asarray(pair.b, np.float64)
    (depth, _, gr), (r, f) = a.shape, b.shape[1:]
    groups = gr // r
    if pair.u is not None and (u := np.asarray(pair.u, np.float64)).shape[-1] <= gr:
        inner = a.reshape(depth, -1, groups, r)
        return u, np.einsum("lpgr,lrf->lpgf", inner, b).reshape(depth, -1, groups * f)
    left = a if pair.u is None else np.asarray(pair.u, np.float64) @ a
    spread = np.einsum("gh,lrf->lgrhf", np.eye(groups), b)
    return left, spread.reshape(depth, gr, groups * f)
