"""Merging of adaptations into weights, for inference at the frozen network's cost."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fact_jax.backbone.adaptation import (
    NORMS,
    SITES,
    Adaptation,
    Affine,
    Bottleneck,
    Prompts,
    magnitude_ratio,
    over_last,
    override,
)
from fact_jax.backbone.checks import check_adaptation, check_base
from fact_jax.errors import UserError

# The dense layers of a block: the six sites, and the gate of a gated MLP, which has no increments.
_LAYERS = {**SITES, "gate": ("MlpBlock_3", "Gate")}
# Those whose input a linear bypass in this place changes.
_READERS = {"before_attention": ("q", "k", "v"), "before_mlp": ("fc1", "gate")}


def absorb(base: dict[str, Any], adaptation: Adaptation) -> tuple[dict[str, Any], Adaptation]:
    """Merges the part of an adaptation that can become weights.

    Increments, norms of columns, scales and shifts, replaced weights and linear bypasses before a
    branch become weights; prompts and the other bypasses remain. Products are taken in float32.

    Returns:
      A changed copy of `base`, and the remaining changes.

    Raises:
      UserError: the adaptation is that of a ViT of another depth or width.
    """
    _check_base(base, adaptation)
    base = override(base, adaptation.weights)
    blocks = base["Transformer"]["encoderblock"]

    def put(module: str, layer: str | None, **leaves: Array) -> None:
        nonlocal blocks
        prefix = module if layer is None else f"{module}/{layer}"
        blocks = override(blocks, {f"{prefix}/{name}": leaf for name, leaf in leaves.items()})

    for name, module in NORMS.items():
        if (affine := adaptation.affines.get(name)) is not None:
            old = blocks[module]
            put(module, None, **_scaled(old, affine, "scale"))
    for site, (module, layer) in _layers(blocks):
        dense = dict(blocks[module][layer])
        for pair in adaptation.site(site) if site in SITES else ():
            dense["kernel"] = dense["kernel"] + pair.increment().astype(dense["kernel"].dtype)
        if (wanted := adaptation.magnitudes.get(site)) is not None:
            ratio = over_last(magnitude_ratio(dense["kernel"], (), wanted), dense["kernel"])
            dense["kernel"] = dense["kernel"] * ratio
        for place, readers in _READERS.items():
            several = adaptation.bypasses.get(place, ())
            for i in reversed(range(len(several))):  # the last one acts on the kernel first
                if site in readers and _merges(place, several, i):
                    dense = _before(dense, several[i])
        if (affine := adaptation.affines.get(site)) is not None:
            dense = _scaled(dense, affine, "kernel")
        put(module, layer, **dense)
    base = override(base, {"Transformer/encoderblock": blocks})
    if adaptation.patches is not None:
        changed = _scaled(base["embedding"], adaptation.patches, "kernel")
        base = override(base, {"embedding": changed})
    if adaptation.final is not None:
        changed = _scaled(base["Transformer"]["encoder_norm"], adaptation.final, "scale")
        base = override(base, {"Transformer/encoder_norm": changed})
    return base, Adaptation(prompts=adaptation.prompts, bypasses=_remaining(adaptation))


def merge(base: dict[str, Any], adaptation: Adaptation) -> dict[str, Any]:
    """Merges an adaptation into a copy of `base`, for inference at no extra cost.

    Raises:
      UserError: a part of the adaptation cannot become a weight (`absorb` returns such parts).
    """
    weights, rest = absorb(base, adaptation)
    _check_merges(rest.prompts, rest.bypasses)
    return weights


def unmerge(base: dict[str, Any], adaptation: Adaptation) -> dict[str, Any]:
    """Takes an adaptation out of merged weights: the inverse of `merge`, up to float32's rounding.

    Args:
      base: weights that `merge` gave.
      adaptation: the changes that were merged. A scale of 0 has lost its channel, which becomes
        NaN.

    Raises:
      UserError: the adaptation does not merge, or it replaces weights or norms of columns, whose
        former values nothing tells.
    """
    _check_base(base, adaptation)
    if adaptation.magnitudes:
        raise UserError(
            "This adaptation sets the norms of the columns of kernels "
            f"({', '.join(adaptation.magnitudes)}), and their former norms are not in the merged "
            "weights. Load the base anew."
        )
    if adaptation.weights:
        raise UserError(
            f"This adaptation replaces weights ({min(adaptation.weights)} is the first of "
            f"{len(adaptation.weights)}), and their former values are not in the merged ones. Load "
            "the base anew."
        )
    _check_merges(adaptation.prompts, _remaining(adaptation))
    blocks = base["Transformer"]["encoderblock"]
    changed: dict[str, Any] = {}
    for name, module in NORMS.items():
        if (affine := adaptation.affines.get(name)) is not None:
            changed[module] = _unscaled(blocks[module], affine, "scale")
    for site, (module, layer) in _layers(blocks):
        dense = dict(blocks[module][layer])
        if (affine := adaptation.affines.get(site)) is not None:
            dense = _unscaled(dense, affine, "kernel")
        for place, readers in _READERS.items():
            for f in adaptation.bypasses.get(place, ()) if site in readers else ():
                dense = _without(dense, f)
        for pair in adaptation.site(site) if site in SITES else ():
            dense["kernel"] = dense["kernel"] - pair.increment().astype(dense["kernel"].dtype)
        changed[f"{module}/{layer}"] = dense
    base = override(base, {"Transformer/encoderblock": override(blocks, changed)})
    if adaptation.patches is not None:
        changed = _unscaled(base["embedding"], adaptation.patches, "kernel")
        base = override(base, {"embedding": changed})
    if adaptation.final is not None:
        changed = _unscaled(base["Transformer"]["encoder_norm"], adaptation.final, "scale")
        base = override(base, {"Transformer/encoder_norm": changed})
    return base


def _layers(blocks: Mapping[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """The dense layers that these blocks have, with their places."""
    return [(name, at) for name, at in _LAYERS.items() if at[1] in blocks[at[0]]]


def _check_base(base: dict[str, Any], adaptation: Adaptation) -> None:
    module, layer = SITES["fc1"]
    check_base(base, {f"Transformer/encoderblock/{module}/{layer}/kernel": (None, None, None)})
    fc1 = base["Transformer"]["encoderblock"][module][layer]["kernel"]
    check_adaptation(adaptation, fc1.shape)


def _check_merges(prompts: Prompts | None, bypasses: Mapping[str, tuple[Bottleneck, ...]]) -> None:
    """Raises UserError if something is left that cannot become a weight."""
    if left := [*(["prompts"] if prompts is not None else []), *bypasses]:
        raise UserError(
            f"This adaptation does not merge into the weights: it has {', '.join(left)}, which are "
            "no weights of a ViT. Apply it as it is: fact_jax.features(model, base, images, "
            "adaptation)."
        )


def _remaining(adaptation: Adaptation) -> dict[str, tuple[Bottleneck, ...]]:
    """The bypasses that cannot become weights."""
    rest = {
        place: tuple(f for i, f in enumerate(several) if not _merges(place, several, i))
        for place, several in adaptation.bypasses.items()
    }
    return {place: several for place, several in rest.items() if several}


def _merges(place: str, several: tuple[Bottleneck, ...], i: int) -> bool:
    """Whether the i-th bypass of a place, and all behind it, become weights."""
    return place in _READERS and all(f.linear for f in several[i:])


def _before(dense: dict[str, Any], f: Bottleneck) -> dict[str, Any]:
    """The layer whose output for y is that of `dense` for ``y + f(y)``."""
    kernel = dense["kernel"]
    return {
        "kernel": kernel + _times(f.down, _times(f.up, kernel)),
        "bias": dense["bias"] + _times(_shift(f)[..., None, :], kernel)[..., 0, :],
    }


def _without(dense: dict[str, Any], f: Bottleneck) -> dict[str, Any]:
    """The layer for which `_before` gives `dense`."""
    # inv(1 + down up) = 1 - down inv(1 + up down) up, whose inverse is of the hidden width.
    inner = _times(f.up, f.down)
    inner = inner + jnp.broadcast_to(jnp.eye(inner.shape[-1], dtype=inner.dtype), inner.shape)
    with jax.default_matmul_precision("highest"):
        solved = jnp.linalg.solve(inner, _times(f.up, dense["kernel"]))
    kernel = dense["kernel"] - _times(f.down, solved)
    bias = dense["bias"] - _times(_shift(f)[..., None, :], kernel)[..., 0, :]
    return {"kernel": kernel, "bias": bias}


def _shift(f: Bottleneck) -> Array:
    """The constant that a linear bottleneck adds to every token, [l, d]."""
    shift = jnp.zeros_like(f.up[..., 0, :]) if f.up_bias is None else f.up_bias
    if f.down_bias is not None:
        shift = shift + _times(f.down_bias[..., None, :], f.up)[..., 0, :]
    return shift


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _scaled(layer: dict[str, Any], affine: Affine, weight: str) -> dict[str, Any]:
    """A dense layer or a LayerNorm whose output goes through an affine."""
    scaled = layer[weight] * over_last(affine.scale, layer[weight])
    return {**layer, weight: scaled, "bias": affine(layer["bias"])}


def _unscaled(layer: dict[str, Any], affine: Affine, weight: str) -> dict[str, Any]:
    """The layer for which `_scaled` gives this one."""
    scale = affine.scale.astype(layer["bias"].dtype)
    shift = affine.shift.astype(layer["bias"].dtype)
    plain = layer[weight] / over_last(affine.scale, layer[weight])
    return {**layer, weight: plain, "bias": (layer["bias"] - shift) / scale}
