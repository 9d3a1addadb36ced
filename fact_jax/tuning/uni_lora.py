"""Uni-LoRA: all numbers of a LoRA are a fixed random projection of one short vector.

The projection, the order of the numbers and the initial values are those of peft.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fact_jax.backbone.adaptation import Adaptation, LowRank
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, SIZE, Whole, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.initial import uniform
from fact_jax.tuning.method import Base, Factors, Scale, checked

_BOUND = 0.02  # of the initial values
_MOST = 2**25  # numbers of the LoRA: 128 MiB


@dataclasses.dataclass(frozen=True)
class UniLoRA:
    """theta [k]: `numbers` k of them, whatever the ViT and the rank.

    Each number of the LoRA of query and value is an entry of theta, divided by the root of how many
    share it, so that the projection keeps lengths.

    Attributes:
      numbers: k.
      rank: r of the LoRA.
      scale: the increments' strength s.
      seed: of the projection, which is drawn anew whenever it is needed.
    """

    about: ClassVar[About] = About(
        "Uni-LoRA, arXiv 2506.00799, NeurIPS 2025",
        "huggingface/peft, src/peft/tuners/unilora",
        "code",
        (
            "In training peft drops entries of a layer's input; here entries of A's output are "
            "dropped.",
        ),
    )
    numbers: int = setting(1000, Whole(1, 2**24))
    rank: int = setting(4, SIZE)
    scale: float = setting(1.0, SCALE)
    seed: int = setting(42, Whole(0, 2**31 - 1))

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """Uniform on +-0.02. Raises UserError for a LoRA of too many numbers, which theta hides."""
        if (count := 4 * config.depth * config.width * self.rank) > _MOST:
            raise UserError(
                f"A LoRA of rank {self.rank} has {count:,} numbers on this ViT; Uni-LoRA makes at "
                f"most {_MOST:,}. Give a smaller rank."
            )
        return {"theta": uniform(key, (self.numbers,), _BOUND)}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        depth, d, r = config.depth, config.width, self.rank
        places, counts = _projection(4 * depth * d * r, self.numbers, self.seed)
        theta = factors["theta"] / jnp.sqrt(jnp.asarray(np.maximum(counts, 1), jnp.float32))
        lora = theta[places].reshape(depth, 2, 2, d * r)  # of q and v, A [r, d] and B [d, r]
        pairs: dict[str, Any] = {}
        for i, site in enumerate("qv"):
            a = lora[:, i, 0].reshape(depth, r, d).swapaxes(1, 2)
            b = lora[:, i, 1].reshape(depth, d, r).swapaxes(1, 2)
            pairs[site] = LowRank(a, scale * b)
        return Adaptation(**pairs)


@functools.lru_cache(maxsize=8)
def _projection(count: int, numbers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The entry of theta that each number of the LoRA is, and how many share each entry."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(numbers, dtype=np.int64), count // numbers)
    if rest := count % numbers:
        places = np.concatenate([places, rng.choice(numbers, size=rest, replace=False)])
    rng.shuffle(places)
    return places.astype(np.int32), np.bincount(places, minlength=numbers)
