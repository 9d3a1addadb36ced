"""Accuracy of methods and of numerics on what can be had offline."""
