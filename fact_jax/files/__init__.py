"""Every file format: weights, factor files, JSON, and the guards against hostile files."""
