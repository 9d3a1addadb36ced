"""Visual prompt tuning: learned tokens beside the image's, at the first block or at every one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Prompts
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class _VPT:
    num_tokens: int = setting(10, SIZE)
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def _init(self, key: jax.Array, config: ViTConfig, blocks: int) -> Factors:
        # Xavier's bound for the patch embedding.
        bound = (6 / (3 * config.patch_size**2 + config.width)) ** 0.5
        return {"tokens": uniform(key, (blocks, self.num_tokens, config.width), bound)}


class VPTShallow(_VPT):
    """Tokens [1, p, d] before the first block; the later blocks read their outputs: p d numbers.

    `scale` is not used. Dropout, if any, acts on the tokens.
    """

    about: ClassVar[About] = About(
        "Jia et al., Visual Prompt Tuning, ECCV 2022",
        "KMnP/vpt, src/models/vit_prompt/vit.py",
        "code",
    )

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        return self._init(key, config, 1)

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        rest = config.depth - 1
        tokens = jnp.pad(factors["tokens"], ((0, rest), (0, 0), (0, 0)))
        later = jnp.arange(config.depth, dtype=jnp.int32)[:, None] > 0
        return Adaptation(prompts=Prompts(tokens, jnp.broadcast_to(later, tokens.shape[:2])))


class VPTDeep(_VPT):
    """Tokens [l, p, d], new ones before every block: L p d numbers.

    `scale` is not used. Dropout, if any, acts on the tokens.
    """

    about: ClassVar[About] = About(
        "Jia et al., Visual Prompt Tuning, ECCV 2022",
        "KMnP/vpt, src/models/vit_prompt/vit.py",
        "code",
    )

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        return self._init(key, config, config.depth)

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        return Adaptation(prompts=Prompts(factors["tokens"]))
