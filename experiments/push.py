"""``python -m experiments.push``: the command of fact_jax/cli/push.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("push")
