"""``python -m experiments.serve``: the command of fact_jax/cli/serve.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("serve")
