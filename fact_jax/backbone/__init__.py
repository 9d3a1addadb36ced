"""The Vision Transformer and its weights."""
