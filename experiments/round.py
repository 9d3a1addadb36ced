"""``python -m experiments.round``: the command of fact_jax/cli/round.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("round")
