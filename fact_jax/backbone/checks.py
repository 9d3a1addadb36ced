"""Checks of what users pass to the network: one clear sentence instead of XLA's shapes.

They look at shapes and types, and at values of single numbers only, so that they work on traced
arrays and cost microseconds.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.adaptation import SITES, Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import Real, check

Shape = tuple[int | None, ...]  # None: any size


def check_images(config: ViTConfig, images: Any) -> None:
    """Raises UserError unless these are normalised images [b, y, x, 3] of whole patches."""
    shape = getattr(images, "shape", None)
    if shape is None:
        raise UserError(
            f"images is of type {type(images).__name__}; expected an array [batch, height, width, "
            "3] of float32."
        )
    if len(shape) == 3 and shape[-1] == 3:
        raise UserError(
            f"images has shape {_text(shape)}; expected a batch, [batch, height, width, 3]. For "
            "one image pass images[None]."
        )
    if len(shape) != 4:
        raise UserError(f"images has shape {_text(shape)}; expected [batch, height, width, 3].")
    if shape[3] != 3 and shape[1] == 3:
        raise UserError(
            f"images has shape {_text(shape)}, with the channels first; expected [batch, height, "
            "width, 3]. Pass images.transpose(0, 2, 3, 1)."
        )
    if shape[3] != 3:
        remedies = {
            1: " Repeat grey values: images.repeat(3, axis=-1).",
            4: " Leave out the transparency: images[..., :3].",
        }
        raise UserError(
            f"images has {shape[3]} channels (shape {_text(shape)}); expected 3, [batch, height, "
            f"width, 3].{remedies.get(shape[3], '')}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images is of type {images.dtype}; expected float32, normalised. Pixels from 0 to 255 "
            "become that by fact_jax.normalise(images, 'imagenet')."
        )
    if shape[1] != shape[2] or shape[1] % config.patch_size or not shape[1]:
        raise UserError(
            f"Images of {shape[1]} x {shape[2]} pixels: expected square ones, of a multiple of the "
            f"patch size {config.patch_size}. Resize them."
        )


def check_base(base: Any, shapes: Mapping[str, Shape]) -> None:
    """Raises UserError unless base has floating-point leaves of these shapes.

    `shapes` are by the leaves' names, joined with "/". The first leaf that differs is named.
    """
    remedy = "Take model and base from one fact_jax.load_vit, which returns (model, base)."
    if not isinstance(base, Mapping) or "Transformer" not in base:
        raise UserError(f"base does not hold the parameters of a ViT. {remedy}")
    for name, expected in shapes.items():
        leaf: Any = base
        for key in name.split("/"):
            leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
        fault = ""
        if leaf is None:
            fault = "it is missing"
        elif not fits(shape := np.shape(leaf), expected):
            fault = f"its shape is {_text(shape)}, expected {_text(expected)}"
        elif not jnp.issubdtype(dtype := getattr(leaf, "dtype", type(leaf)), jnp.floating):
            fault = f"it is of type {getattr(dtype, 'name', dtype)}, expected float32"
        if fault:
            raise UserError(f"base does not fit the model in {name!r}: {fault}. {remedy}")


def check_adaptation(adaptation: Any, kernel: tuple[int, ...]) -> None:
    """Raises UserError for an adaptation of a ViT whose fc1 kernels [l, d, mlp_dim] differ."""
    if not isinstance(adaptation, Adaptation):
        raise UserError(
            f"adaptation is of type {type(adaptation).__name__}; expected an Adaptation, as "
            "method.adaptation(factors, model.config) gives it."
        )
    for name, array, expected in _expected(kernel, adaptation):
        if not fits(np.shape(array), expected):
            raise UserError(
                f"The adaptation does not fit this ViT of {kernel[0]} blocks of width "
                f"{kernel[1]}: the shape of {name} is {_text(np.shape(array))}, expected "
                f"{_text(expected)}. Were its factors trained for another variant?"
            )


def check_number(name: str, value: Any, allowed: Real) -> None:
    """Raises UserError unless this is None, an allowed number or traced."""
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.shape == ():
        value = value.item()
    if value is not None:
        check(name, value, allowed)


def fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Whether a shape is the expected one, where None stands for any size."""
    return len(shape) == len(expected) and all(
        size in (None, n) for n, size in zip(shape, expected, strict=True)
    )


def _expected(kernel: tuple[int, ...], adaptation: Adaptation) -> Iterator[tuple[str, Any, Shape]]:
    """Name, array and expected shape of the arrays that depend on depth and width."""
    depth, d, mlp = kernel
    inputs, outputs = {"fc2": mlp}, {"fc1": mlp, "qkv": 3 * d}
    for site in (*SITES, "qkv"):
        pairs = getattr(adaptation, site)
        for pair in () if pairs is None else (pairs,) if isinstance(pairs, LowRank) else pairs:
            rows, columns = inputs.get(site, d), outputs.get(site, d)
            if pair.u is not None:
                yield f"{site}.u", pair.u, (depth, rows, None)
                rows = np.shape(pair.u)[-1]
            r, width = np.shape(pair.b)[-2:]
            groups = max(columns // max(width, 1), 1)
            yield f"{site}.a", pair.a, (depth, rows, groups * r)
            yield f"{site}.b", pair.b, (depth, r, columns // groups)
    if adaptation.prompts is not None:
        yield "prompts.tokens", adaptation.prompts.tokens, (depth, None, d)
    for place, several in adaptation.bypasses.items():
        for f in several:
            yield f"{place}.down", f.down, (depth, d, None)
            yield f"{place}.up", f.up, (depth, None, d)
    for site, affine in adaptation.affines.items():
        yield f"{site}.scale", affine.scale, (depth, mlp if site == "fc1" else d)
    for site, norms in adaptation.magnitudes.items():
        yield f"{site}'s norms", norms, (depth, mlp if site == "fc1" else d)
    for name in ("patches", "final"):
        if (affine := getattr(adaptation, name)) is not None:
            yield f"{name}.scale", affine.scale, (d,)


def _text(shape: Shape) -> str:
    return " x ".join("any" if n is None else str(n) for n in shape) or "() (a single number)"
