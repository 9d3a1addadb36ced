"""Several methods at once: their factors side by side, their adaptations added up."""

import dataclasses

import jax

from fact_jax.backbone.adaptation import Adaptation, combine
from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.ranges import SCALE, check_fields, setting
from fact_jax.tuning.method import Base, Factors, Method, Scale, SearchMethod, checked


@dataclasses.dataclass(frozen=True)
class Combination:
    """Named methods; factors are called "NAME/FACTOR". `scale` multiplies each part's scale."""

    parts: tuple[tuple[str, Method], ...]
    scale: float = setting(1.0, SCALE)

    def __post_init__(self) -> None:
        check_fields(self)
        if len(dict(self.parts)) < len(self.parts):
            raise UserError(f"Parts of one name: {', '.join(name for name, _ in self.parts)}.")
        for name, part in self.parts:
            if isinstance(part, SearchMethod):
                raise UserError(
                    f"{name} cannot be combined: nothing would search it. Combine what it found, "
                    "noah_subnet."
                )

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        keys = jax.random.split(key, len(self.parts))
        return {
            f"{name}/{factor}": value
            for (name, part), subkey in zip(self.parts, keys, strict=True)
            for factor, value in part.init(subkey, config, base).items()
        }

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        adaptations = []
        for name, part in self.parts:
            prefix = f"{name}/"
            named = {k.removeprefix(prefix): v for k, v in factors.items() if k.startswith(prefix)}
            adaptations.append(part.adaptation(named, config, scale * part.scale))
        return combine(adaptations)
