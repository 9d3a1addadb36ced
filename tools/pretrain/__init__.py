"""The pre-training of the bundled ViT."""
