"""MetaTT with a core for the task: tasks that are trained together share everything else."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.ranges import SCALE, SIZE, Flag, check_fields, setting
from fact_jax.tuning.about import About
from fact_jax.tuning.metatt import INITIAL, PAPER, MetaTT, MetaTTHeads
from fact_jax.tuning.method import Base, Factors, Scale, checked


@dataclasses.dataclass(frozen=True)
class MetaTTTasks:
    """MetaTT with a core T [r, r] for the task; tasks that are trained together share the rest.

    Slice i of layer l changes by ``s U G[l] T M[i] V``. A task's own numbers are the r^2 of T.
    With `heads` the rest is MetaTTHeads'.
    """

    about: ClassVar[About] = About(
        PAPER,
        "",
        "abstract",
        (INITIAL, "The place of the core for tasks, before that of the kind, is ours."),
    )
    rank: int = setting(16, SIZE)
    scale: float = setting(1.0, SCALE)
    heads: bool = setting(False, Flag())

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def shared(self) -> tuple[str, ...]:
        """The factors that tasks share."""
        return ("U", "G", "M", "H", "V") if self.heads else ("U", "G", "M", "V")

    @property
    def _form(self) -> MetaTT | MetaTTHeads:
        return (MetaTTHeads if self.heads else MetaTT)(self.rank, self.scale)

    def init(self, key: jax.Array, config: ViTConfig, base: Base | None = None) -> Factors:
        """Begins as MetaTT does, with T the identity."""
        return {**self._form.init(key, config, base), "T": jnp.eye(self.rank, dtype=jnp.float32)}

    @checked
    def adaptation(self, factors: Factors, config: ViTConfig, scale: Scale = None) -> Adaptation:
        scale = self.scale if scale is None else scale
        rest = {name: x for name, x in factors.items() if name != "T"}
        rest["G"] = jnp.matmul(factors["G"], factors["T"], precision="highest")
        return self._form.adaptation(rest, config, scale)
