"""Settings for a task of one's own that nobody chose settings for.

They follow the number of training pictures alone. Scale and rate come from a small grid, chosen on
validation pictures. None of the numbers here was searched.
"""

from typing import NamedTuple

_STEPS = 300  # of a training, as long as that means 10 to 100 epochs
_EPOCHS = (10, 100)


class SimpleSettings(NamedTuple):
    """Settings of a training, by the names that a config has for them."""

    batch_size: int
    epochs: int
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    scales: tuple[float, ...] = (1.0,)


def simple_settings(num_train: int) -> SimpleSettings:
    """The settings for a number of training pictures.

    Args:
      num_train: pictures of the final training.

    Returns:
      Batches of 16 to 64 pictures, at least four an epoch where there are enough; and epochs of
      300 steps together, at least 10 and at most 100.
    """
    batch_size = next((size for size in (64, 32) if num_train >= 4 * size), 16)
    steps = max(num_train // batch_size, 1)
    epochs = min(max(round(_STEPS / steps), _EPOCHS[0]), _EPOCHS[1])
    return SimpleSettings(batch_size, epochs)
