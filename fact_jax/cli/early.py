"""Lets signals end `fact-jax` without a traceback while its libraries are imported, for seconds.

The console script imports the package before it calls any function, so this is its first import.
A program that imports the package is left alone. `experiments/__init__.py` does the same for
``python -m experiments.NAME``.
"""

import os
import signal
import sys

if os.path.basename(next(iter(sys.argv), "")) in ("fact-jax", "fact-jax.exe"):
    for number in (signal.SIGINT, signal.SIGTERM):  # until the command handles them itself
        signal.signal(number, lambda number, frame: os._exit(128 + number))
