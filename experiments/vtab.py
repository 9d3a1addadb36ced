"""``python -m experiments.vtab``: the command of fact_jax/cli/vtab.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("vtab")
