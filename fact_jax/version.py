"""The version of this package, as factor files and results state it."""

__version__ = "0.1.0"
