"""Time and memory: a training step and its peers, evaluation, whole sweeps, the report."""
