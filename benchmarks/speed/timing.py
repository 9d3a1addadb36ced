"""Time and memory of the steps of one process."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 2  # calls before those measured: PyTorch's second step is still a tenth slower


def peak_memory(reset: bool = False) -> int:
    """The largest resident set since the last reset, in bytes (Linux).

    What compiling and initialising have freed is given back to the system before.
    """
    if reset:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(call: Callable[[], Any], calls: int, steps: int) -> list[float]:
    """[seconds a step], the mean of the steps that these calls do; each call waits for its end."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return [(time.perf_counter() - start) / steps]
