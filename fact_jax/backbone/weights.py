"""Published ViT weights: reading, writing, and fetching them.

Google's `.npz` files hold one array per block and parameter (`Transformer/encoderblock_3/...`),
attention kernels split by head ([d, h, d/h] and, for the output, [h, d/h, d]). Both generations are
read: the ImageNet-21k files of 2020, with a `pre_logits` layer, and AugReg (Steiner et al., 2022),
without. `pre_logits` and the old classification head are dropped, as in FacT's code.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.config import VARIANTS, ViTConfig, get_variant
from fact_jax.backbone.huggingface import read_dinov2
from fact_jax.backbone.vit import ViT, init_base
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
# First digits of the md5 sum, where a source states them (VPT's README for ViT-B_16).
MD5_PREFIX: dict[str, str] = {"vit_b16": "d9715d"}
# Weights that ship with the package.
BUNDLED: dict[str, Path] = {"vit_mini": Path(__file__).parent / "bundled" / "vit_mini.npz"}


def cache_dir() -> Path:
    """Where downloads are kept: $FACT_JAX_CACHE, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("FACT_JAX_CACHE") or pooch.os_cache("fact_jax"))


def load_vit(variant: str, path: str | os.PathLike | None = None, **changes) -> tuple[ViT, dict]:
    """The model and its frozen parameters, float32, from a `.npz` file (DINOv2: safetensors).

    Without a path the published (or bundled) weights of the variant are used, downloaded once.
    `changes` override fields of the config, such as ``gelu="tanh"`` or ``dtype="bfloat16"``.
    Raises UserError when the file is missing, damaged or of another variant.
    """
    path = Path(path) if path else find_weights(variant)
    config = get_variant(variant).replace(**changes)
    if config.layer_scale:
        return read_dinov2(path, config)
    return read_npz(path, config)


def find_weights(variant: str) -> Path:
    """Path of the variant's bundled or cached weights, downloading them if need be."""
    get_variant(variant)
    if variant in BUNDLED:
        return BUNDLED[variant]
    folder = cache_dir() / "weights"
    if variant not in URLS:
        raise UserError(
            f"No weights of {variant} are known here: give the path of a file (for DINOv2, the "
            "safetensors file of the model's page on Hugging Face)."
        )
    target = folder / URLS[variant].rsplit("/", 1)[1]
    if not target.exists():
        _download(URLS[variant], target)
        prefix = MD5_PREFIX.get(variant, "")
        md5 = file_hash(target, "md5")
        if not md5.startswith(prefix):
            target.unlink()
            raise UserError(
                f"The file from {URLS[variant]} has md5 {md5}; expected it to start with {prefix}. "
                "It was removed: try again, or give a file of your own as the weights path."
            )
    return target


def _download(url: str, target: Path) -> None:
    import pooch
    import requests

    try:
        # No complete checksum is published; read_npz verifies the checksum of every member.
        pooch.retrieve(url, None, fname=target.name, path=target.parent, progressbar=True)
    except (requests.RequestException, OSError) as error:
        raise UserError(
            f"The weights could not be downloaded from {url} ({type(error).__name__}). Fetch that "
            f"file on a machine with a network and put it at {target}, or set the weights path to "
            "a copy that you have."
        ) from error


def file_hash(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def read_npz(path: str | os.PathLike, config: ViTConfig) -> tuple[ViT, dict]:
    """Reads a Google `.npz` file of the given shape; float32 base in the stacked layout.

    The returned model's `image_size` is the one that the file's position table was made for.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Weights file {path} does not exist.")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"Weights file {path} ({path.stat().st_size:,} bytes) is not a .npz (zip) file, or it "
            "is truncated. Download it again, or name another file."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _stack(path, config, arrays)
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"Weights file {path} is damaged ({error}). Download it again, or name another file."
        ) from error


def _stack(path: Path, config: ViTConfig, arrays) -> tuple[ViT, dict]:
    _check_variant(path, config, arrays)
    grid = round((arrays["Transformer/posembed_input/pos_embedding"].shape[1] - 1) ** 0.5)
    config = config.replace(image_size=grid * config.patch_size)

    def read(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in arrays:
            raise UserError(f"Weights file {path} holds no array {key!r} [{_text(shape)}].")
        array, stored = arrays[key], _split_heads(key, shape, config)
        if array.shape not in (shape, stored):
            raise UserError(
                f"Weights file {path}: array {key!r} is [{_text(array.shape)}]; expected "
                f"[{_text(stored)}]."
            )
        return np.asarray(array, np.float32).reshape(shape)

    def leaf(path_keys, struct):
        names = [str(k.key) for k in path_keys]
        if "encoderblock" not in names:
            return jnp.asarray(read("/".join(names), struct.shape))
        layers = (
            read("/".join(names).replace("encoderblock", f"encoderblock_{i}"), struct.shape[1:])
            for i in range(config.depth)
        )
        return jnp.asarray(np.stack(list(layers)))

    structs = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    return ViT(config), jax.tree_util.tree_map_with_path(leaf, structs)


def _split_heads(key: str, shape: tuple[int, ...], config: ViTConfig) -> tuple[int, ...]:
    """The shape in which the files store a block's parameter that we store as `shape`."""
    heads = (config.num_heads, config.width // config.num_heads)
    if "MultiHeadDotProductAttention_1" not in key or key.endswith("out/bias"):
        return shape
    return (*heads, config.width) if "/out/" in key else (*shape[:-1], *heads)


def _text(shape) -> str:
    return ", ".join(map(str, shape))


def _check_variant(path: Path, config: ViTConfig, arrays) -> None:
    """Says which variant a file holds, if it is not the one wanted."""
    if "embedding/kernel" not in arrays or "Transformer/posembed_input/pos_embedding" not in arrays:
        raise UserError(
            f"Weights file {path} is a zip file, but not a ViT in the Google .npz layout: it holds "
            f"{', '.join(sorted(arrays)[:3]) or 'nothing'} ... and no 'embedding/kernel'."
        )
    patch, _, _, width = arrays["embedding/kernel"].shape
    depth = sum(k.endswith("MlpBlock_3/Dense_0/bias") for k in arrays)
    if (patch, width, depth) != (config.patch_size, config.width, config.depth):
        names = [
            name
            for name, c in VARIANTS.items()
            if (c.patch_size, c.width, c.depth, c.layer_scale) == (patch, width, depth, False)
        ]
        raise UserError(
            f"Weights file {path} holds a ViT of patch size {patch}, width {width} and {depth} "
            f"blocks{f' ({names[0]})' if names else ''}; expected patch size {config.patch_size}, "
            f"width {config.width} and {config.depth} blocks. Set the variant that fits the file."
        )


def write_npz(path: str | os.PathLike, config: ViTConfig, base: dict, dtype=np.float32) -> None:
    """Writes `base` in the Google `.npz` layout, one array per block, compressed."""
    arrays: dict[str, Any] = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(base):
        name = "/".join(str(k.key) for k in keys)
        value = np.asarray(value, dtype)
        if "encoderblock" not in name:
            arrays[name] = value
            continue
        for i, array in enumerate(value):
            stored = array.reshape(_split_heads(name, array.shape, config))
            arrays[name.replace("encoderblock", f"encoderblock_{i}")] = stored
    np.savez_compressed(path, allow_pickle=False, **arrays)
