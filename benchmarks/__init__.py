"""Measurements, in folders by purpose; README.md lists them with their last results.

`python -m benchmarks.NAME` finds a program in any of the folders. Imports name the folder, as in
`benchmarks.accuracy.cells`, so that no module is imported under two names.
"""

from pathlib import Path

FOLDERS = ("accuracy", "devices", "plots", "robustness", "speed")
__path__.extend(str(Path(__file__).parent / folder) for folder in FOLDERS)
