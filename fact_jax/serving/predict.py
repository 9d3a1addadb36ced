"""Logits of images, from a frozen ViT and one task's factors, at the frozen ViT's cost."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from fact_jax.backbone.checks import check_images
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT
from fact_jax.files.factors import TrainedTask, check_fits
from fact_jax.ranges import Whole, check
from fact_jax.training.evaluation import Merged, logits, one_ahead
from fact_jax.training.mesh import make_mesh, put, replicated
from fact_jax.tuning.method import Base


def affordable_batch(config: ViTConfig, image_size: int, devices: int) -> int:
    """64 images, or fewer where a layer's attention scores would take over 1 GiB of a device."""
    tokens = (image_size // config.patch_size) ** 2 + config.num_prefix
    most = max(2**30 // (4 * config.num_heads * tokens**2), 1)  # 4 bytes a score
    return max(devices, min(64, devices << (most.bit_length() - 1)))


class Predictor:
    """A ViT with a task's changes, merged into its weights where possible, once and in float32.

    Args:
      model: the network, as `load_vit` gives it.
      base: its parameters.
      task: the content of a factor file, as `load_factors` gives it.
      batch_size: most images of a batch, which is split over as many of the machine's devices as
        divide it.

    Raises:
      UserError: the factors were trained for a model of another shape or with other settings. The
        weights are not compared; `check_fits` does so, given their checksum.
    """

    def __init__(self, model: ViT, base: Base, task: TrainedTask, batch_size: int = 64):
        check("batch_size", batch_size, Whole(1))
        check_fits(task, model.config, None, any_weights=True)
        self.model, self.task, self.batch_size = model, task, batch_size
        self._mesh = make_mesh(batch_size)
        trainable = {"factors": task.factors, "head": task.head}
        trained = Merged.of(task.method, model.config, base, trainable)
        self._trained: Merged = put(trained, replicated(self._mesh))

    def logits(self, images: Float[np.ndarray, "n y x 3"]) -> Float[np.ndarray, "n c"]:
        """float32 logits of normalised images, which may be a memory map.

        A program is compiled for every new number of images below `batch_size`.
        """
        starts = range(0, len(images), self.batch_size)
        rows = list(self.stream(images[i : i + self.batch_size] for i in starts))
        return np.concatenate(rows) if rows else np.empty((0, self.task.num_classes), np.float32)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Logits of each batch; all images must have the same size.

        A batch is padded to the largest so far, so that one program serves equal batches and a
        shorter last one. It is dispatched before the logits of the previous batch are awaited.
        """
        program = functools.partial(logits, self.model.config, self._trained)
        return one_ahead(program, map(self._checked, batches), self._mesh)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        check_images(self.model.config, images)
        return images.astype(np.float32, copy=False)
