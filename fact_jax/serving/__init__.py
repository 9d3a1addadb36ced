"""Trained factors in use: prediction, its inputs and outputs, and export to other code."""
