"""`Adaptation`: what a task changes in a frozen ViT.

Every tuning method is a function from its own small pytree to this one; the ViT knows only this.
Letters in shapes: `l` layer, `d` in width, `e` out width, `r` rank, `g` groups of output columns,
`h` width of a bottleneck, `p` prompt tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fact_jax.errors import UserError


@flax.struct.dataclass
class LowRank:
    """A low-rank increment of a dense kernel, ``increment = a @ b`` per group of output columns.

    Columns ``[j * e/g, (j+1) * e/g)`` of the increment are ``a[:, j*r:(j+1)*r] @ b``, so that all
    groups share `b`. LoRA and a single FacT slice have g = 1; FacT cuts fc1 along its output into
    g = 4 slices that share V, and query, key and value together are g = 3. fc2, which FacT cuts
    along its input, is a plain pair whose `a` has 4d rows.

    Attributes:
      a: [..., d, g * r], or [..., r', g * r] if there is `u`.
      b: [..., r, e / g].
      u: [..., d, r'] or None; ``u @ a`` takes the place of `a`, so that the input is projected once
        for all groups.
    """

    a: Float[Array, "*l _ gr"]
    b: Float[Array, "*l r f"]
    u: Float[Array, "*l d rank"] | None = None

    def outer(self) -> Float[Array, "*l d gr"]:
        """The first factor of the product, ``u @ a`` or just `a`, in the factors' dtype."""
        # 'highest': a TPU's default for float32 is a product of bfloat16 numbers.
        return self.a if self.u is None else jnp.matmul(self.u, self.a, precision="highest")

    def increment(self) -> Float[Array, "*l d e"]:
        """The dense increment, [..., d, e], in the factors' dtype."""
        a = self.outer()
        *lead, d, gr = a.shape
        r, f = self.b.shape[-2:]
        dense = jnp.einsum(
            "...dgr,...rf->...dgf", a.reshape(*lead, d, gr // r, r), self.b, precision="highest"
        )
        return dense.reshape(*lead, d, gr // r * f)

    def split(self) -> list[LowRank]:
        """One pair for each group."""
        r = self.b.shape[-2]
        parts = jnp.split(self.a, self.a.shape[-1] // r, axis=-1)
        return [LowRank(part, self.b, self.u) for part in parts]


@flax.struct.dataclass
class Bottleneck:
    """A small network beside or behind a branch: ``f(x) = up(act(down(x)))`` over tokens.

    In training the last hidden values go through dropout.

    Attributes:
      down: [..., d, h].
      up: [..., h, e].
      down_bias: [..., h], or None.
      up_bias: [..., e], or None.
      norm: "scale" and "bias" [..., d] of a LayerNorm of the input, or None.
      conv: the kernel [..., 3, 3, h, h] of ``up(act(conv(act(down(x)))))``, or None. It runs over
        the grid of patches, and over the class token and each prompt token as images of one pixel.
      conv_bias: [..., h], or None.
      activation: 'none', 'relu', 'gelu' or 'quick_gelu'.
      drop_path: whether the output goes through a stochastic depth of its own in training.
      norm_eps: the epsilon of `norm`; None takes the ViT's.
    """

    down: Float[Array, "*l d h"]
    up: Float[Array, "*l h e"]
    down_bias: Float[Array, "*l h"] | None = None
    up_bias: Float[Array, "*l e"] | None = None
    norm: dict[str, Array] | None = None
    conv: Float[Array, "*l 3 3 h h"] | None = None
    conv_bias: Float[Array, "*l h"] | None = None
    activation: str = flax.struct.field(pytree_node=False, default="none")
    drop_path: bool = flax.struct.field(pytree_node=False, default=False)
    norm_eps: float | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def linear(self) -> bool:
        """Whether it is an affine function of each token, which merges into a dense layer."""
        return self.activation == "none" and self.norm is None and self.conv is None


# Where a Bottleneck f acts: x is the residual stream, y the normalised input of attention or MLP,
# z what the branch adds to the stream (after LayerScale and stochastic depth). They act in this
# order.
BYPASSES: dict[str, str] = {
    f"{when}_{part}": what
    for part in ("attention", "mlp")
    for when, what in {
        "before": "y + f(y) in the place of y",
        "beside": "z + f(y) in the place of z",
        "across": "z + f(x) in the place of z",
        "after": "z + f(z) in the place of z",
    }.items()
} | {"after_block": "x + f(x) in the place of x, behind the whole block"}


def over_last(values: Array, y: Array) -> Array:
    """Values [*l, e] for each entry of y's last axis, with y's dtype and number of axes.

    The leading axes of `values`, if any, are y's first ones.
    """
    lead = values.ndim - 1
    return values.astype(y.dtype).reshape(
        *values.shape[:lead], *[1] * (y.ndim - values.ndim), values.shape[-1]
    )


@flax.struct.dataclass
class Affine:
    """``y * scale + shift`` over the last axis."""

    scale: Float[Array, "*l e"]
    shift: Float[Array, "*l e"]

    def __call__(self, y: Array) -> Array:
        return y * over_last(self.scale, y) + over_last(self.shift, y)


_TINY = float(np.finfo(np.float32).tiny)


def magnitude_ratio(
    kernel: Float[Array, "*l d e"], pairs: Sequence[LowRank], wanted: Float[Array, "*l e"]
) -> Float[Array, "*l e"]:
    """Factors that bring the columns of a kernel with increments to the wanted norms, float32.

    The norms that they have are taken for constants in a gradient (DoRA, section 4.3).
    """
    for pair in pairs:
        kernel = kernel + pair.increment()
    norms = jnp.linalg.norm(kernel.astype(jnp.float32), axis=-2)
    return wanted / jax.lax.stop_gradient(jnp.maximum(norms, _TINY))


@flax.struct.dataclass
class Prompts:
    """Prompt tokens beside the image's; every block puts its own in the place of the last block's.

    Attributes:
      tokens: [l, p, d].
      kept: [l, p], or None: where it is true, the token of the block before stays (zeros before the
        first block).
      hidden: [l, p], or None: no query attends to these tokens.
    """

    tokens: Float[Array, "*l p d"]
    kept: Bool[Array, "*l p"] | None = None
    hidden: Bool[Array, "*l p"] | None = None


@flax.struct.dataclass
class Adaptation:
    """Changes to a ViT; None or empty means unchanged.

    Six dense sites of a block take increments: query, key, value and output projection, and the two
    layers of the MLP; `qkv` changes the first three at once, with g = 3. A site may have several.
    All but `patches`, `final` and `weights` have a leading axis [l, ...] that the ViT scans over.

    Attributes:
      q: increments of the query's kernel; `k`, `v`, `o`, `fc1`, `fc2` and `qkv` are like it.
      prompts: tokens beside the image's.
      bypasses: the bottlenecks that act in each place of BYPASSES, in their order.
      affines: scale and shift of the output of each of the six sites, and of "norm1" and "norm2"
        (before attention, before the MLP).
      magnitudes: for some of the six sites, the Euclidean norms [l, e] that the columns of its
        kernel get, increments included. No gradient goes through the norms that they had.
      patches: scale and shift of the patch embedding's output.
      final: scale and shift of the last norm's output.
      weights: base parameters that replace the frozen ones, by their names joined with "/".
    """

    q: LowRank | tuple[LowRank, ...] | None = None
    k: LowRank | tuple[LowRank, ...] | None = None
    v: LowRank | tuple[LowRank, ...] | None = None
    o: LowRank | tuple[LowRank, ...] | None = None
    fc1: LowRank | tuple[LowRank, ...] | None = None
    fc2: LowRank | tuple[LowRank, ...] | None = None
    qkv: LowRank | tuple[LowRank, ...] | None = None
    prompts: Prompts | None = None
    bypasses: Mapping[str, tuple[Bottleneck, ...]] = flax.struct.field(default_factory=dict)
    affines: Mapping[str, Affine] = flax.struct.field(default_factory=dict)
    magnitudes: Mapping[str, Array] = flax.struct.field(default_factory=dict)
    patches: Affine | None = None
    final: Affine | None = None
    weights: Mapping[str, Array] = flax.struct.field(default_factory=dict)

    def site(self, name: str) -> tuple[LowRank, ...]:
        """Pairs of one of the six sites, including its share of those stored as 'qkv'."""
        together = _several(self.qkv) if name in ("q", "k", "v") else ()
        return (
            *(pair.split()["qkv".index(name)] for pair in together),
            *_several(getattr(self, name)),
        )

    def blocks(self) -> Adaptation:
        """The part of the changes that belongs to the blocks; `weights` by names within a block."""
        weights = {k.removeprefix(_BLOCKS): v for k, v in self.weights.items() if is_of_block(k)}
        return dataclasses.replace(self, patches=None, final=None, weights=weights)


# Where each site's kernel lies in a block's parameters.
SITES: dict[str, tuple[str, str]] = {
    "q": ("MultiHeadDotProductAttention_1", "query"),
    "k": ("MultiHeadDotProductAttention_1", "key"),
    "v": ("MultiHeadDotProductAttention_1", "value"),
    "o": ("MultiHeadDotProductAttention_1", "out"),
    "fc1": ("MlpBlock_3", "Dense_0"),
    "fc2": ("MlpBlock_3", "Dense_1"),
}
NORMS: dict[str, str] = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}


_BLOCKS = "Transformer/encoderblock/"


def is_of_block(name: str) -> bool:
    """Whether a base parameter of this name is stacked over the blocks."""
    return name.startswith(_BLOCKS)


def override(tree: dict[str, Any], weights: Mapping[str, Array | dict[str, Any]]) -> dict[str, Any]:
    """A copy of a tree of dicts in which `weights`, by names joined with "/", replace leaves."""
    for name, value in weights.items():
        head, _, rest = name.partition("/")
        if head not in tree:
            raise UserError(
                f"The adaptation replaces the weight {name!r}, which this ViT does not have. Were "
                "its factors trained for another variant?"
            )
        if not rest and not isinstance(value, dict) and value.shape != tree[head].shape:
            raise UserError(
                f"The adaptation replaces the weight {name!r} of shape {tree[head].shape} by one "
                f"of shape {value.shape}. Were its factors trained for another variant?"
            )
        tree = {**tree, head: override(tree[head], {rest: value}) if rest else value}
    return tree


def _several(pairs: LowRank | tuple[LowRank, ...] | None) -> tuple[LowRank, ...]:
    return () if pairs is None else (pairs,) if isinstance(pairs, LowRank) else pairs


def combine(adaptations: Sequence[Adaptation]) -> Adaptation:
    """Combines all changes.

    Increments add up, prompts stand side by side, bypasses and affines act one after the other.

    Raises:
      UserError: two of them replace the same weights or set the same norms.
    """
    fields: dict[str, Any] = {}
    for name in (*SITES, "qkv"):
        pairs = tuple(pair for a in adaptations for pair in _several(getattr(a, name)))
        fields[name] = pairs if len(pairs) > 1 else pairs[0] if pairs else None
    places = {place: None for a in adaptations for place in a.bypasses}
    fields["bypasses"] = {
        place: tuple(f for a in adaptations for f in a.bypasses.get(place, ())) for place in places
    }
    names = {name: None for a in adaptations for name in a.affines}
    fields["affines"] = {name: _chain(a.affines.get(name) for a in adaptations) for name in names}
    fields["patches"] = _chain(a.patches for a in adaptations)
    fields["final"] = _chain(a.final for a in adaptations)
    for name, what in {"weights": "weights", "magnitudes": "norms of columns"}.items():
        fields[name] = {}
        for a in adaptations:
            values = getattr(a, name)
            if twice := sorted(values.keys() & fields[name].keys()):
                raise UserError(
                    f"Two of the combined methods train the same {what} ({twice[0]}"
                    f"{' and others' if len(twice) > 1 else ''}). Leave one of them out."
                )
            fields[name] |= values
    prompts = [a.prompts for a in adaptations if a.prompts is not None]
    if len(prompts) > 1:
        fields["prompts"] = _side_by_side(prompts)
    elif prompts:
        fields["prompts"] = prompts[0]
    return Adaptation(**fields)


def _chain(affines: Iterable[Affine | None]) -> Affine | None:
    result = None
    for affine in affines:
        if affine is not None and result is not None:
            affine = Affine(result.scale * affine.scale, affine(result.shift))
        result = result if affine is None else affine
    return result


def _side_by_side(prompts: list[Prompts]) -> Prompts:
    def flags(name: str) -> Array | None:
        values = [getattr(p, name) for p in prompts]
        if all(value is None for value in values):
            return None
        return jnp.concatenate(
            [
                jnp.zeros(p.tokens.shape[:2], bool) if value is None else value
                for p, value in zip(prompts, values, strict=True)
            ],
            axis=1,
        )

    tokens = jnp.concatenate([p.tokens for p in prompts], axis=1)
    return Prompts(tokens, flags("kept"), flags("hidden"))
