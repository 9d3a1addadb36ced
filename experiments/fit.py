"""``python -m experiments.fit``: the command of fact_jax/cli/fit.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("fit")
