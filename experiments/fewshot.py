"""``python -m experiments.fewshot``: the command of fact_jax/cli/fewshot.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("fewshot")
