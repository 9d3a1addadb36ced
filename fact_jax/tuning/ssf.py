"""SSF: a scale and a shift of every operation's output; both merge into the weights."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import NORMS, SITES, Adaptation, Affine
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class SSF:
    """Scales N(1, 0.02) and shifts N(0, 0.02) after patch embedding, norms and dense layers.

    These are 2 (11 L d + 2 d) numbers for mlp_dim = 4 d: query, key and value have one scale and
    one shift each. `scale` is not used.
    """

    about: ClassVar[About] = About(
        "Lian et al., Scaling & Shifting Your Features, NeurIPS 2022",
        "dongzelian/SSF, models/vision_transformer.py",
        "code",
    )
    scale: float = setting(1.0, SCALE, acts=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        shapes: dict[str, tuple[int, ...]] = {
            name: (config.depth, config.width) for name in (*NORMS, *SITES)
        }
        shapes["fc1"] = (config.depth, config.mlp_dim)
        shapes |= {"patches": (config.width,), "final": (config.width,)}
        factors: Factors = {}
        keys = jax.random.split(key, len(shapes))
        for (name, shape), subkey in zip(shapes.items(), keys, strict=True):
            noise = 0.02 * jax.random.normal(subkey, (2, *shape), jnp.float32)
            factors |= {f"{name}_scale": 1 + noise[0], f"{name}_shift": noise[1]}
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        def affine(name: str) -> Affine:
            return Affine(factors[f"{name}_scale"], factors[f"{name}_shift"])

        return Adaptation(
            affines={name: affine(name) for name in (*NORMS, *SITES)},
            patches=affine("patches"),
            final=affine("final"),
        )
