"""``python -m experiments.bank ACTION``: the commands of fact_jax/cli/bank_*.py."""

from fact_jax.cli.main import start_action

if __name__ == "__main__":
    start_action("bank")
