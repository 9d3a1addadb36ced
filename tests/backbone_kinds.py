"""A tiny ViT of every kind that differs from a plain one, with random parameters."""

import functools

import jax
import numpy as np

from fact_jax import VARIANTS, ViT, ViTConfig
from fact_jax.backbone.vit import init_base
from fact_jax.files.layouts import LAYOUTS
from fact_jax.files.metadata import flat

_TINY = dict(width=24, depth=3, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
# A variant of each kind, which says what the kind is.
KINDS = {
    "registers": "dinov2_s14_reg",
    "rope": "dinov3_s16",
    "rope_gated": "dinov3_s16plus",
    "clip": "clip_b16",
    "siglip": "siglip2_b16",
    "so400m": "siglip2_so400m14",
    "beit": "beit_b16",
}
_CHANGES = {"so400m": {"mlp_dim": 84}}  # no multiple of the width


def tiny(kind: str, **changes) -> ViTConfig:
    """The config of a kind's variant, of 24 numbers and three blocks."""
    return VARIANTS[KINDS[kind]].replace(**{**_TINY, **_CHANGES.get(kind, {}), **changes})


@functools.cache
def tiny_vit(kind: str) -> tuple[ViT, dict]:
    """A tiny ViT whose biases and gains are random too; biases that the kind lacks are zero."""
    config = tiny(kind)
    rng = np.random.default_rng(0)

    def changed(keys, x):
        name = "/".join(k.key for k in keys)
        lacks = name.endswith("key/bias") and "encoderblock" in name and not config.key_bias
        if lacks or (name == "embedding/bias" and not config.patch_bias):
            return x
        return x + 0.1 * rng.normal(size=x.shape).astype("float32")

    base = init_base(config, jax.random.key(0))
    return ViT(config), jax.tree_util.tree_map_with_path(changed, base)


def as_stored(base: dict, title: str) -> dict[str, np.ndarray]:
    """A ViT's parameters in PyTorch's shapes, under a layout's names."""
    layout = next(layout for layout in LAYOUTS if layout.title == title)
    parts: dict[str, list[np.ndarray]] = {}
    for name, value in flat(base).items():
        layers = enumerate(value) if "encoderblock" in name else [(None, value)]
        for layer, one in layers:
            if name.endswith("kernel"):
                one = one.transpose((3, 2, 0, 1) if one.ndim == 4 else (1, 0))
            parts.setdefault(layout.tensor(name, layer)[0], []).append(np.asarray(one))
    order = ("in_proj_weight", "in_proj_bias")  # query, key, value, and not by our names
    for name, several in parts.items():
        if name.endswith(order):
            key, query, value = several
            parts[name] = [query, key, value]
    return {name: np.ascontiguousarray(np.concatenate(p)) for name, p in parts.items()}
