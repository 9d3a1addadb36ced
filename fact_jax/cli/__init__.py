"""The commands: `python -m experiments.NAME`, and `fact-jax NAME` after `pip install`."""
