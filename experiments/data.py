"""``python -m experiments.data``: the command of fact_jax/cli/data.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("data")
