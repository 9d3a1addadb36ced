"""Tuning methods: pure functions from a small pytree of factors to an `Adaptation`."""

from fact_jax.tuning.fact_tk import FacTTK
from fact_jax.tuning.fact_tt import FacTTT
from fact_jax.tuning.linear import Linear
from fact_jax.tuning.method import Method, count_parameters

METHODS: dict[str, type] = {"fact_tt": FacTTT, "fact_tk": FacTTK, "linear": Linear}

__all__ = ["METHODS", "FacTTK", "FacTTT", "Linear", "Method", "count_parameters"]
