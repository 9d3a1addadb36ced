"""``python -m experiments.report``: the command of fact_jax/cli/report.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("report")
