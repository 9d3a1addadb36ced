"""``python -m experiments.export``: the command of fact_jax/cli/export.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("export")
