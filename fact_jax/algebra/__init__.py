"""Algebra of trained factors: rounding, conversion, arithmetic, quantisation."""

from fact_jax.algebra.arithmetic import average, dare, interpolate, ties
from fact_jax.algebra.increments import Increments, Joint
from fact_jax.algebra.moments import second_moments
from fact_jax.algebra.reduction import Reduced, reduced
from fact_jax.algebra.rounding import Rounded, round_to, round_within
from fact_jax.algebra.sharing import conditioned, share
from fact_jax.algebra.spectra import norms, similarity, singular_values

__all__ = [
    "Increments",
    "Joint",
    "Reduced",
    "Rounded",
    "average",
    "conditioned",
    "dare",
    "interpolate",
    "norms",
    "reduced",
    "round_to",
    "round_within",
    "second_moments",
    "share",
    "similarity",
    "singular_values",
    "ties",
]
