"""FacT's learning rate, constant within an epoch."""

import math


def learning_rate(
    epoch: int,
    *,
    peak: float = 1e-3,
    epochs: int = 100,
    warmup_epochs: int = 10,
    minimum: float = 1e-5,
    warmup_start: float = 1e-6,
) -> float:
    """Rate of the 0-based `epoch`: linear warm-up, then a cosine, one epoch late.

    timm's CosineLRScheduler as FacT's code drives it, ``step(epoch)`` *after* each epoch: epochs 0
    and 1 both run at `warmup_start`, the warm-up is not a prefix of the cosine (which is entered
    at t = `warmup_epochs`), and `peak` itself is never reached.
    """
    t = max(epoch - 1, 0)
    if t < warmup_epochs:
        return warmup_start + t * (peak - warmup_start) / warmup_epochs
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * t / epochs))


def highest_share(peak: float, epochs: int, warmup_epochs: int) -> float:
    """The highest rate of all epochs, as a share of the peak; 1 where the peak is 0.

    The warm-up and the cosine are monotone, so that an end of one of them is the highest.
    """
    if peak == 0:
        return 1.0
    ends = (0, warmup_epochs, warmup_epochs + 1, epochs - 1)
    rates = (
        learning_rate(min(epoch, epochs - 1), peak=peak, epochs=epochs, warmup_epochs=warmup_epochs)
        for epoch in ends
    )
    return max(rates) / peak
