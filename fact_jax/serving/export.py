"""A trained task as a file for other code."""

import tempfile
import warnings
from pathlib import Path

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.files.factors import OF_THE_FILE, TrainedTask, check_fits, to_bytes
from fact_jax.files.kinds import check_plain, kind_of
from fact_jax.files.reference import reference_tensors
from fact_jax.files.torch_zip import torch_bytes
from fact_jax.files.weights import checksum, write_npz
from fact_jax.serving.folders import merged_base
from fact_jax.tuning.method import Base


def torch_file(task: TrainedTask) -> bytes:
    """The `.pt` that the released PyTorch code takes with ``load_state_dict(strict=False)``.

    It holds neither scale nor rank nor preprocessing. Raises UserError if that code has no such
    method (see `reference_tensors`).
    """
    vit = task.metadata["vit"]
    if "patch_size" in vit:  # released files do not say it
        remedy = "Export the merged weights as .npz."
        check_plain(ViTConfig(**vit), "The PyTorch code of FacT", remedy)
    tensors = reference_tensors(task.method, task.factors, task.head)
    if (mlp_dim := vit.get("mlp_dim", 4 * vit["width"])) != 4 * vit["width"]:
        raise UserError(
            f"The PyTorch code knows only MLPs of 4 x width; {task.path} was trained for an MLP "
            f"of {mlp_dim} and width {vit['width']}. Export the merged weights as .npz."
        )
    return torch_bytes(tensors)


def factor_file(task: TrainedTask, variant: str, config: ViTConfig, base: Base | None) -> bytes:
    """Our factor file of a task that was read from a file of other code.

    What such a file does not say is taken from the PyTorch code: ImageNet normalisation, and
    pictures resized to the ViT's image size.
    Without `base` the file does not say which weights it belongs to.
    """
    digest = None if base is None else checksum(base)
    check_fits(task, config, digest, any_weights=digest is None)
    stated = {k: v for k, v in task.metadata.items() if k not in OF_THE_FILE}
    metadata = {
        "image_size": config.image_size,
        "normalisation": "imagenet",
        "jpeg_quality": None,
        **stated,
        "variant": variant,
        "weights_sha256": digest or stated.get("weights_sha256"),
    }
    trainable = {"factors": task.factors, "head": task.head}
    return to_bytes(task.method, trainable, config, metadata)


def npz_file(
    config: ViTConfig, base: Base, task: TrainedTask | None = None, any_weights: bool = False
) -> bytes:
    """`base` in the Google layout; with a task, its increments are merged and its head is included.

    Warns if the ViT has what no other reader of that layout knows.
    """
    if kind := kind_of(config):
        warnings.warn(
            f"this ViT has {', '.join(kind)}. The .npz holds it, but only fact-jax reads it: "
            "timm's and FacT's loaders would leave it out without a word.",
            stacklevel=2,
        )
    base = merged_base(config, base, task, any_weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        write_npz(path, config, base)
        return path.read_bytes()
