"""Algebra of trained factors: rounding, conversion, arithmetic, quantisation."""
