"""``python -m experiments.predict``: the command of fact_jax/cli/predict.py."""

from fact_jax.cli.main import start

if __name__ == "__main__":
    start("predict")
