"""AdaptFormer: a bottleneck across the MLP, from the residual stream to the residual stream."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation, Bottleneck
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, SIZE, Flag, OneOf, OrNone, Real, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import linear
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class AdaptFormer:
    """``x + mlp(norm(x)) + s up(relu(down(x)))``, x not normalised; `up` begins at zero.

    Attributes:
      width: h.
      scale: s; the released code has 0.1.
      form: 'adaptformer' has biases, L (2 d h + h + d) numbers; 'petl' has none, 2 L d h numbers.
      layer_norm: whether form 'adaptformer' has a LayerNorm of its own (2 L d more).
      layer_norm_eps: the epsilon of that LayerNorm, 1e-5 as in the released code (PyTorch's
        default). None takes the ViT's epsilon, as the factor files of earlier versions need it.
    """

    about: ClassVar[About] = About(
        "Chen et al., AdaptFormer, NeurIPS 2022",
        "ShoufaChen/AdaptFormer, models/adapter.py; JieShibo/PETL-ViT, "
        "binary_adapter/adaptformer.py",
        "code",
    )
    width: int = setting(8, SIZE)
    scale: float = setting(0.1, SCALE)
    form: str = setting("adaptformer", OneOf(("adaptformer", "petl")))
    layer_norm: bool = setting(False, Flag())
    layer_norm_eps: float | None = setting(1e-5, OrNone(Real(0, above=True)))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.form == "petl" and self.layer_norm:
            raise UserError("form 'petl' has no LayerNorm: set layer_norm to False.")

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        depth, d, h = config.depth, config.width, self.width
        factors = {"down": linear(key, (depth, d, h)), "up": jnp.zeros((depth, h, d), jnp.float32)}
        if self.form == "adaptformer":
            factors |= {
                "down_bias": jnp.zeros((depth, h), jnp.float32),
                "up_bias": jnp.zeros((depth, d), jnp.float32),
            }
        if self.layer_norm:
            ones, zeros = jnp.ones((depth, d), jnp.float32), jnp.zeros((depth, d), jnp.float32)
            factors |= {"norm_scale": ones, "norm_bias": zeros}
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        norm = {k: factors[f"norm_{k}"] for k in ("scale", "bias")} if self.layer_norm else None
        bottleneck = Bottleneck(
            factors["down"],
            scale * factors["up"],
            factors.get("down_bias"),
            scale * factors["up_bias"] if "up_bias" in factors else None,
            norm,
            activation="relu",
            norm_eps=self.layer_norm_eps,
        )
        return Adaptation(bypasses={"across_mlp": (bottleneck,)})
