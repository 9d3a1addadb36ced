"""DoRA: LoRA with trained norms of the adapted kernels' columns."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import SITES, Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, Text, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.lora import LoRA
from fact_jax.tuning.method import Base, Factors, Scale, checked, from_base


@dataclasses.dataclass(frozen=True)
class DoRA:
    """Kernel ``m (W + s A B) / |W + s A B|`` by columns: LoRA's numbers, and e for each layer.

    W is [d, e]; its columns' norms are m at first. No gradient goes through the division.

    Attributes:
      rank: r.
      scale: the increments' strength s.
      sites: names of the dense sites, as LoRA's.
    """

    about: ClassVar[About] = About(
        "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024",
        "huggingface/peft, src/peft/tuners/lora/dora.py",
        "code",
        (
            "By default query and value, as LoRA here; the paper adapts language models.",
            "In training peft drops entries of a layer's input; here entries of A's output are "
            "dropped.",
        ),
    )
    rank: int = setting(8, SIZE)
    scale: float = setting(1.0, SCALE)
    sites: str = setting("q,v", Text())

    def __post_init__(self) -> None:
        check_fields(self)
        LoRA(self.rank, sites=self.sites)  # checks the sites

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """A and B as LoRA's, m the norms of the base's columns; raises UserError without a base."""
        factors = LoRA(self.rank, self.scale, self.sites).init(key, config, base)
        for site in self.sites.split(","):
            name = "/".join(("Transformer", "encoderblock", *SITES[site], "kernel"))
            (kernel,) = from_base(base, name.__eq__).values()
            factors[f"norms_{site}"] = jnp.linalg.norm(kernel, axis=-2)
        return factors

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        lora = {name: x for name, x in factors.items() if not name.startswith("norms_")}
        increments = LoRA(self.rank, sites=self.sites).adaptation(lora, config, scale)
        norms = {site: factors[f"norms_{site}"] for site in self.sites.split(",")}
        return dataclasses.replace(increments, magnitudes=norms)
