"""``python -m experiments.vtab``: the command of fact_jax/cli/vtab.py."""

from fact_jax.cli.vtab import start

if __name__ == "__main__":
    start()
