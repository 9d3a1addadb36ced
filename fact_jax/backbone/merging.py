"""Merging of adaptations into weights, for inference at the frozen network's cost."""

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
    over_last,
    override,
)
from fact_jax.backbone.checks import check_adaptation, check_base
from fact_jax.errors import UserError

# The dense sites whose input a linear bypass in this place changes.
_READERS = {"before_attention": ("q", "k", "v"), "before_mlp": ("fc1",)}


def absorb(base: dict[str, Any], adaptation: Adaptation) -> tuple[dict[str, Any], Adaptation]:
    """Merges the part of an adaptation that can become weights.

    Increments, scales and shifts, replaced weights and linear bypasses before a branch become
    weights; prompts and the other bypasses remain. Products are taken in float32.

    Returns:
      A changed copy of `base`, and the remaining changes.

    Raises:
      UserError: the adaptation is that of a ViT of another depth or width.
    """
    module, layer = SITES["fc1"]
    check_base(base, {f"Transformer/encoderblock/{module}/{layer}/kernel": (None, None, None)})
    fc1 = base["Transformer"]["encoderblock"][module][layer]["kernel"]
    check_adaptation(adaptation, fc1.shape)
    base = override(base, adaptation.weights)
    blocks = base["Transformer"]["encoderblock"]

    def put(module: str, layer: str | None, **leaves: Array) -> None:
        nonlocal blocks
        prefix = module if layer is None else f"{module}/{layer}"
        blocks = override(blocks, {f"{prefix}/{name}": leaf for name, leaf in leaves.items()})

    rest = {
        place: tuple(f for i, f in enumerate(several) if not _merges(place, several, i))
        for place, several in adaptation.bypasses.items()
    }
    for name, module in NORMS.items():
        if (affine := adaptation.affines.get(name)) is not None:
            old = blocks[module]
            put(module, None, **_scaled(old, affine, "scale"))
    for site, (module, layer) in SITES.items():
        dense = dict(blocks[module][layer])
        for pair in adaptation.site(site):
            dense["kernel"] = dense["kernel"] + pair.increment().astype(dense["kernel"].dtype)
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
    left = {place: several for place, several in rest.items() if several}
    return base, Adaptation(prompts=adaptation.prompts, bypasses=left)


def merge(base: dict[str, Any], adaptation: Adaptation) -> dict[str, Any]:
    """Merges an adaptation into a copy of `base`, for inference at no extra cost.

    Raises:
      UserError: a part of the adaptation cannot become a weight (`absorb` returns such parts).
    """
    weights, rest = absorb(base, adaptation)
    if left := [*(["prompts"] if rest.prompts is not None else []), *rest.bypasses]:
        raise UserError(
            f"This adaptation does not merge into the weights: it has {', '.join(left)}, which are "
            "no weights of a ViT. Apply it as it is: fact_jax.features(model, base, images, "
            "adaptation)."
        )
    return weights


def _merges(place: str, several: tuple[Bottleneck, ...], i: int) -> bool:
    """Whether the i-th bypass of a place, and all behind it, become weights."""
    return place in _READERS and all(f.linear for f in several[i:])


def _before(dense: dict[str, Any], f: Bottleneck) -> dict[str, Any]:
    """The layer whose output for y is that of `dense` for ``y + f(y)``."""

    def times(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision="highest")

    kernel, bias = dense["kernel"], dense["bias"]
    shift = jnp.zeros_like(f.up[..., 0, :]) if f.up_bias is None else f.up_bias
    if f.down_bias is not None:
        shift = shift + times(f.down_bias[..., None, :], f.up)[..., 0, :]
    return {
        "kernel": kernel + times(f.down, times(f.up, kernel)),
        "bias": bias + times(shift[..., None, :], kernel)[..., 0, :],
    }


def _scaled(layer: dict[str, Any], affine: Affine, weight: str) -> dict[str, Any]:
    """A dense layer or a LayerNorm whose output goes through an affine."""
    scaled = layer[weight] * over_last(affine.scale, layer[weight])
    return {**layer, weight: scaled, "bias": affine(layer["bias"])}
