"""Faults: kills, full disks and corrupt files in sweeps; mutated files against the readers."""
