"""CaRA: two sums of r rank-one tensors, over the heads of attention and over all other slices.

Shapes, order of slices and initial values (with l_mu 1 and l_std 0) are those of the authors' code,
but for what `about` lists.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Affine, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, Whole, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked
from fact_jax.tuning.slices import assemble, mlp_slices

_BIASES = {"o": "bias_o", "fc1": "bias_fc1", "fc2": "bias_fc2"}


@dataclasses.dataclass(frozen=True)
class CaRA:
    """A1 [3 l, r], A2 [d, r], A3 [h, r], A4 [d / h, r]; P1 [9 l, r], P2, P3 [d, r]; R1, R2 [r].

    Query, key and value change by ``s sum_r R1 A1 A2 (A3 x A4)``, the nine other slices by
    ``s sum_r R2 P1 P3 P2``, and biases of o, fc1 and fc2 are added, the same in all layers.
    """

    about: ClassVar[About] = About(
        "CaRA: Canonical Rank Adaptation, ICML 2025",
        "BonnBytes/CaRA, src/cara/cara.py",
        "code",
        (
            "Dropout acts on the r values, in the source on the dense increment.",
            "A1 and P1 begin as a normal distribution cut at 2.3 deviations, in the source uncut.",
        ),
    )
    rank: int = setting(16, Whole(1, 1024))  # its cores are r x r
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """A2, P2 and the biases zero, A3, A4 and P3 orthogonal, A1 and P1 Xavier-normal, R one."""
        d, heads, r, depth = config.width, config.num_heads, self.rank, config.depth
        keys = iter(jax.random.split(key, 5))
        orthogonal, xavier = jax.nn.initializers.orthogonal(), jax.nn.initializers.glorot_normal()
        zero, f32 = jnp.zeros((d, r), jnp.float32), jnp.float32
        return {
            "A1": xavier(next(keys), (3 * depth, r), f32),
            "A2": zero,
            "A3": orthogonal(next(keys), (heads, r), f32),
            "A4": orthogonal(next(keys), (d // heads, r), f32),
            "P1": xavier(next(keys), ((1 + 2 * mlp_slices(config)) * depth, r), f32),
            "P2": zero,
            "P3": orthogonal(next(keys), (d, r), f32),
            **{name: jnp.ones(r, f32) for name in ("R1", "R2")},
            **{_BIASES[site]: jnp.zeros(d, f32) for site in ("o", "fc2")},
            "bias_fc1": jnp.zeros(config.mlp_dim, f32),
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        depth, r, f = config.depth, self.rank, factors
        eye = jnp.eye(r, dtype=jnp.float32)[None, None]
        attention = (f["R1"][None] * f["A1"]).reshape(depth, 3, r)[..., None] * eye
        heads = jnp.einsum("hr,fr->rhf", f["A3"], f["A4"]).reshape(r, -1)
        others = (f["R2"][None] * f["P1"]).reshape(depth, -1, r)[..., None] * eye
        # Rows of P2 are outputs of o and fc1, and inputs of fc2.
        g = mlp_slices(config)
        unused = jnp.zeros((depth, 3, r, r), jnp.float32)
        forward = assemble(f["P3"], jnp.concatenate([unused, others], 1), f["P2"].T, scale)
        back = assemble(f["P2"], jnp.concatenate([unused, others], 1), f["P3"].T, scale)
        u, b = (jnp.broadcast_to(x, (depth, *x.shape)) for x in (f["A2"], scale * heads))
        qkv = LowRank(attention.swapaxes(1, 2).reshape(depth, r, -1), b, u)
        affines = {site: _shift(scale * f[name], depth) for site, name in _BIASES.items()}
        assert others.shape[1] == 1 + 2 * g
        return Adaptation(qkv=qkv, o=forward.o, fc1=forward.fc1, fc2=back.fc2, affines=affines)


def _shift(bias: jax.Array, depth: int) -> Affine:
    """A shift of a layer's output, the same in all blocks."""
    shift = jnp.broadcast_to(bias, (depth, *bias.shape))
    return Affine(jnp.ones_like(shift), shift)
