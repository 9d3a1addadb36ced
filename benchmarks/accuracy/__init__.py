"""Accuracy of methods and of numerics on tasks that need no network."""
