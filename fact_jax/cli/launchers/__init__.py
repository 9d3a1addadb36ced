"""Launchers, which start copies of a sweep on Ray or under Slurm and follow the work directory."""
