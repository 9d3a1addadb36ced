"""LoRA: a low-rank pair for each chosen dense layer.

PETL-ViT has pairs of query and value with dropout between A and B, NOAH one A for query, key and
value.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import SITES, Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, SIZE, Flag, Text, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import linear
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class LoRA:
    """A [l, in, r], as PyTorch's Linear begins, and B [l, r, out], zero, for each of `sites`.

    Attributes:
      rank: r.
      scale: the increments' strength s.
      sites: names of the six dense sites (q, k, v, o, fc1, fc2) with commas between them.
      shared_input: whether they share one A, and so must read the same input. This is NOAH's form,
        with "q,k,v": A and B begin as N(0, 0.02), because the constructor of its net ends by
        drawing every Linear anew.
    """

    about: ClassVar[About] = About(
        "Hu et al., LoRA, ICLR 2022; on ViTs Zhang, Zhou & Liu, Neural Prompt Search, 2022",
        "JieShibo/PETL-ViT, binary_adapter/lora.py; ZhangYuanhan-AI/NOAH, "
        "model/supernet_vision_transformer_timm.py",
        "code",
        (
            "NOAH drops entries of the input of A in training; here entries of its output are "
            "dropped.",
        ),
    )
    rank: int = setting(8, SIZE)
    scale: float = setting(1.0, SCALE)
    sites: str = setting("q,v", Text())
    shared_input: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self)
        names = self.sites.split(",")
        if not set(names) <= set(SITES) or len(set(names)) < len(names):
            raise UserError(f"sites is {self.sites!r}; expected some of {','.join(SITES)}.")
        if self.shared_input and not set(names) <= {"q", "k", "v"}:
            raise UserError(f"sites {self.sites!r} read different inputs: they share no A.")

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        r, depth, names = self.rank, config.depth, self.sites.split(",")
        inputs, outputs = {"fc2": config.mlp_dim}, {"fc1": config.mlp_dim}
        factors: Factors = {}
        shared = self.shared_input
        key_a, *keys = jax.random.split(key, len(names) + 1)
        for name, subkey in zip(names, keys, strict=True):
            rows, columns = inputs.get(name, config.width), outputs.get(name, config.width)
            if not shared:
                factors[f"A_{name}"] = linear(subkey, (depth, rows, r))
            b = jnp.zeros((depth, r, columns), jnp.float32)
            factors[f"B_{name}"] = (
                0.02 * jax.random.normal(subkey, b.shape, jnp.float32) if shared else b
            )
        if shared:
            factors["A"] = 0.02 * jax.random.normal(key_a, (depth, config.width, r), jnp.float32)
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        pairs: dict[str, Any] = {
            name: LowRank(
                factors["A" if self.shared_input else f"A_{name}"], scale * factors[f"B_{name}"]
            )
            for name in self.sites.split(",")
        }
        return Adaptation(**pairs)
