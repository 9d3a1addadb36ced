"""Checks of the setting `consistency`, before a sweep begins."""

from fact_jax.backbone.config import ViTConfig
from fact_jax.errors import UserError
from fact_jax.sweep.settings import RunSettings
from fact_jax.training.objective import check_halves, check_noise
from fact_jax.training.recipe import check_mixing
from fact_jax.tuning.method import Method, adaptation_shapes


def check_consistency(where: str, method: Method, vit: ViTConfig, settings: RunSettings) -> None:
    """Raises UserError if a method, called `where` in the config, cannot train with consistency.

    What the method changes decides, not its name: noise multiplies increments and bottlenecks.
    """
    form = settings.consistency
    try:
        check_noise(adaptation_shapes(method, vit), method)
        check_mixing(form, settings.mixup, settings.cutmix)
        check_halves(form, settings.batch_size)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
