"""Programs that are compiled before a request needs them."""

import json
from collections.abc import Iterable

import numpy as np

from fact_jax.serving.bank import Bank
from fact_jax.serving.incoming import stored_width


class WarmUp:
    """Compiles what new tasks need, once for tasks that share their programs.

    A program depends on the method with its settings but for the scale, on the width of the head's
    stack, on the size of the images, and on the number of rows, a power of two.

    Args:
      bank: whose programs are compiled.
      enabled: False: nothing is compiled, and the first requests wait.
    """

    def __init__(self, bank: Bank, enabled: bool = True):
        self._bank, self._enabled = bank, enabled
        self._done: set[tuple[str, int, int]] = set()

    def __call__(self, names: Iterable[str]) -> None:
        """Compiles the programs of these tasks of the bank that no earlier task had."""
        for name in names if self._enabled else ():
            key = self._programs(name)
            if key not in self._done:
                self._compile(name, side=key[2])
                self._done.add(key)

    def _programs(self, name: str) -> tuple[str, int, int]:
        task = self._bank.task(name)
        settings = {k: v for k, v in task.metadata["method_settings"].items() if k != "scale"}
        shares = bool(task.metadata.get("dictionary"))
        method = json.dumps([task.metadata["method"], settings, shares], sort_keys=True)
        side = task.metadata.get("image_size") or self._bank.model.config.image_size
        return method, stored_width(len(task.classes)), side

    def _compile(self, name: str, side: int) -> None:
        rows = 1
        while rows < self._bank.batch_size:
            self._bank.logits(np.zeros((rows, side, side, 3), np.float32), name)
            rows *= 2
        self._bank.logits(np.zeros((self._bank.batch_size, side, side, 3), np.float32), name)
