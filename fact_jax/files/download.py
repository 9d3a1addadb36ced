"""Finding published weights, and fetching them once."""

import hashlib
import os
from pathlib import Path

from fact_jax.backbone.config import get_variant
from fact_jax.errors import UserError

_BUCKET = "https://storage.googleapis.com/vit_models/"
_AUGREG = _BUCKET + "augreg/{}-i21k-300ep-lr_0.001-aug_{}-wd_{}-do_0.0-sd_0.0.npz"

# Each variant's published ImageNet-21k file; vit_b16 is the one that FacT, NOAH and VPT start from.
URLS: dict[str, str] = {
    "vit_ti16": _AUGREG.format("Ti_16", "none", "0.03"),
    "vit_s16": _AUGREG.format("S_16", "light1", "0.03"),
    "vit_s32": _AUGREG.format("S_32", "none", "0.1"),
    "vit_b16": _BUCKET + "imagenet21k/ViT-B_16.npz",
    "vit_b32": _BUCKET + "imagenet21k/ViT-B_32.npz",
    "vit_l16": _BUCKET + "imagenet21k/ViT-L_16.npz",
    "vit_l32": _BUCKET + "imagenet21k/ViT-L_32.npz",
    "vit_h14": _BUCKET + "imagenet21k/ViT-H_14.npz",
}
# Published on the Hugging Face hub only.
HUB: dict[str, str] = {
    "dinov2_s14": "hf:facebook/dinov2-small",
    "dinov2_b14": "hf:facebook/dinov2-base",
    "dinov2_l14": "hf:facebook/dinov2-large",
    "dinov2_s14_reg": "hf:facebook/dinov2-with-registers-small",
    "dinov2_b14_reg": "hf:facebook/dinov2-with-registers-base",
    "dinov2_l14_reg": "hf:facebook/dinov2-with-registers-large",
    "dinov3_s16": "hf:facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3_s16plus": "hf:facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "dinov3_b16": "hf:facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3_l16": "hf:facebook/dinov3-vitl16-pretrain-lvd1689m",
    "dinov3_h16plus": "hf:facebook/dinov3-vith16plus-pretrain-lvd1689m",
    "clip_b16": "hf:openai/clip-vit-base-patch16",
    "clip_b32": "hf:openai/clip-vit-base-patch32",
    "clip_l14": "hf:openai/clip-vit-large-patch14",
    "siglip2_b16": "hf:google/siglip2-base-patch16-224",
    "siglip2_so400m14": "hf:google/siglip2-so400m-patch14-224",
    "beit_b16": "hf:microsoft/beit-base-patch16-224-pt22k-ft22k",
    "beit_l16": "hf:microsoft/beit-large-patch16-224-pt22k-ft22k",
    "mae_b16": "hf:facebook/vit-mae-base",
}
# First digits of the md5 sum, where a source states them (VPT's README for ViT-B_16).
MD5_PREFIX: dict[str, str] = {"vit_b16": "d9715d"}
# Weights that ship with the package.
BUNDLED: dict[str, Path] = {"vit_mini": Path(__file__).parent / "bundled" / "vit_mini.npz"}

# Files fetched from a hub repository: safetensors, whole or in shards, else PyTorch's zip file.
_HUB_FILES = ["config.json", "model.safetensors", "model.safetensors.index.json"]
_HUB_FILES += ["model-*-of-*.safetensors"]
_ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "fact_jax.json"]
_ADAPTER_FILES += ["config.json", "preprocessor_config.json"]


def cache_dir() -> Path:
    """The folder of downloads: $FACT_JAX_CACHE, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("FACT_JAX_CACHE") or pooch.os_cache("fact_jax"))


def find_weights(variant: str, name: str | os.PathLike[str] | None = None) -> Path:
    """The file or folder of weights that `name` stands for, downloading it if need be.

    `name` is a local path, a repository of the Hugging Face hub (``hf:owner/name`` or
    ``hf:owner/name@revision``), or nothing: the variant's bundled or published weights. Raises
    UserError when a download fails.
    """
    get_variant(variant)
    name = str(name or HUB.get(variant, ""))
    if name.startswith("hf:"):
        return _from_hub(name)
    if name:
        return Path(name).expanduser()
    if variant in BUNDLED:
        return BUNDLED[variant]
    target = cache_dir() / "weights" / URLS[variant].rsplit("/", 1)[1]
    if not target.exists():
        _download(URLS[variant], target)
        prefix = MD5_PREFIX.get(variant, "")
        with target.open("rb") as f:
            md5 = hashlib.file_digest(f, "md5").hexdigest()
        if not md5.startswith(prefix):
            target.unlink()
            raise UserError(
                f"The file from {URLS[variant]} has md5 {md5}; expected it to start with {prefix}. "
                "It was removed: try again, or give a file of your own as the weights path."
            )
    return target


def find_task(name: str | os.PathLike[str]) -> Path:
    """The file or folder of a trained task, downloading it for ``hf:owner/name``.

    A repository of the hub holds a PEFT adapter, or one of our factor files. Raises UserError when
    a download fails.
    """
    text = os.fspath(name)
    if not text.startswith("hf:"):
        return Path(name)
    folder = _fetch(text, _ADAPTER_FILES, "The adapter")
    if (folder / "adapter_config.json").is_file():
        if not any(folder.glob("adapter_model.safetensors")):
            folder = _fetch(text, [*_ADAPTER_FILES, "adapter_model.bin"], "The adapter")
        return folder
    folder = _fetch(text, ["*.safetensors", "*.dictionary"], "The factor file")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{text} holds neither adapter_config.json, as PEFT's adapters do, nor a factor file, "
            "a .safetensors file of fact-jax."
        )
    return folder


def _download(url: str, target: Path) -> None:
    import pooch
    import requests

    try:
        # No complete checksum is published; the reader verifies the checksum of every member.
        pooch.retrieve(url, None, fname=target.name, path=target.parent, progressbar=True)
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"The weights could not be downloaded from {url} ({type(error).__name__}). Fetch that "
            f"file on a machine with a network and put it at {target}, or set the weights path to "
            "a copy that you have."
        ) from error


def _from_hub(name: str) -> Path:
    """The local folder of a hub repository of weights."""
    folder = _fetch(name, _HUB_FILES, "The weights")
    if not any(folder.glob("*.safetensors")):
        folder = _fetch(name, ["config.json", "pytorch_model.bin"], "The weights")
    return folder


def _fetch(name: str, patterns: list[str], what: str) -> Path:
    """The local folder of a hub repository, in huggingface_hub's own cache ($HF_HOME)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.removeprefix("hf:").partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a name on the hub; expected hf:owner/name.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{what} could not be had from the Hugging Face hub as {name} "
            f"({type(error).__name__}: {reason}). Check the name, log in if the repository is "
            "gated, or download it on a machine with a network and give the folder's path."
        ) from error
