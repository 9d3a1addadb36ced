"""The pictures of the docs, from stored results."""
