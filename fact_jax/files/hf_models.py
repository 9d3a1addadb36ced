"""Kinds of ViTs for which transformers has a classifier that can read our features.

Dinov2's classifiers read the class token and the mean of the patches: ours has zeros for the
latter. Those of CLIP and SigLIP read the mean of the patches alone, and DINOv3 has none.
"""

from typing import NamedTuple

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.kinds import kind_of


class HFModel(NamedTuple):
    """A model of transformers.

    Attributes:
      model_type: as in its config.json; also what the names of the ViT's tensors begin with.
      architecture: its class with a classifier.
      library: the module of the class.
      layout: the title of its layout (layouts.py).
      reads_patches: whether the classifier is [c, 2 d], for the class token and the mean patch.
    """

    model_type: str
    architecture: str
    library: str
    layout: str
    reads_patches: bool


BEIT = ("LayerScale", "relative positions", "no position table", "features of the patches' mean")
_LIBRARY = "transformers.models.{0}.modeling_{0}".format
_MODELS: dict[tuple[str, ...], HFModel] = {
    (): HFModel("vit", "ViTForImageClassification", _LIBRARY("vit"), "Hugging Face ViT", False),
    ("LayerScale",): HFModel(
        "dinov2", "Dinov2ForImageClassification", _LIBRARY("dinov2"), "Hugging Face Dinov2", True
    ),
    ("LayerScale", "registers"): HFModel(
        "dinov2_with_registers",
        "Dinov2WithRegistersForImageClassification",
        _LIBRARY("dinov2_with_registers"),
        "Hugging Face Dinov2",
        True,
    ),
    BEIT: HFModel(
        "beit", "BeitForImageClassification", _LIBRARY("beit"), "Hugging Face BEiT", False
    ),
}


def hf_model(config: ViTConfig) -> HFModel:
    """The model of transformers for a ViT. Raises UserError if there is none."""
    kind = kind_of(config)
    if kind not in _MODELS:
        raise UserError(
            f"This ViT has {', '.join(kind)}: transformers has no classifier for it that reads the "
            "same features. Export it for timm, or with --format onnx or stablehlo."
        )
    return _MODELS[kind]
