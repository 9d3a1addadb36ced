"""The pictures of README and docs, from stored results."""
