"""Commands from the repository's folder: ``python -m experiments.vtab`` and others."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"]:
    # Python looks for the command to run. Until that has imported its libraries, for seconds, and
    # handles signals itself, they end it without a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))
