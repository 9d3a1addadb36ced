"""fact-jax: Factor-Tuning of Vision Transformers in JAX and Flax."""

from typing import Any

import fact_jax.cli.early as _early  # noqa: F401  (first: signals while the rest is imported)
from fact_jax.backbone.adaptation import Adaptation, LowRank, combine
from fact_jax.backbone.config import VARIANTS, ViTConfig, get_variant
from fact_jax.backbone.merging import absorb, merge, unmerge
from fact_jax.backbone.noise import IncrementNoise
from fact_jax.backbone.vit import ViT, features
from fact_jax.errors import UserError
from fact_jax.files.factors import check_fits, save_factors
from fact_jax.files.load import load_factors
from fact_jax.files.pack import load_pack
from fact_jax.files.weights import checksum, load_vit
from fact_jax.images.normalise import normalise
from fact_jax.serving.bank import Bank
from fact_jax.serving.predict import Predictor
from fact_jax.tuning import (
    EFFT,
    SSF,
    Adapter,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    CaRA,
    Combination,
    Convpass,
    DoRA,
    FacTCP,
    FacTShared,
    FacTTK,
    FacTTT,
    Full,
    Linear,
    LoRA,
    LoRTA,
    MetaTT,
    MetaTTHeads,
    MetaTTTasks,
    RepAdapter,
    UniLoRA,
    VPTDeep,
    VPTShallow,
)
from fact_jax.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    """`fit`, which brings the sweep and the report with it, is imported when it is asked for."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fact_jax.cli.fitting import fit

    return fit


def __dir__() -> list[str]:
    return sorted({*globals(), "fit"})


__all__ = [
    "AdaptFormer",
    "Adaptation",
    "Adapter",
    "AdapterPlus",
    "Bank",
    "BitFit",
    "CaRA",
    "Combination",
    "Convpass",
    "DoRA",
    "EFFT",
    "FacTCP",
    "FacTShared",
    "FacTTK",
    "FacTTT",
    "Full",
    "IncrementNoise",
    "Linear",
    "LoRA",
    "LoRTA",
    "LowRank",
    "MetaTT",
    "MetaTTHeads",
    "MetaTTTasks",
    "Predictor",
    "RepAdapter",
    "SSF",
    "UniLoRA",
    "UserError",
    "VARIANTS",
    "VPTDeep",
    "VPTShallow",
    "ViT",
    "ViTConfig",
    "absorb",
    "check_fits",
    "checksum",
    "combine",
    "features",
    "fit",
    "get_variant",
    "load_factors",
    "load_pack",
    "load_vit",
    "merge",
    "normalise",
    "save_factors",
    "unmerge",
]
