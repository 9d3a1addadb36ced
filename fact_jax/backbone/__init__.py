"""The Vision Transformer: its shape, its forward pass, and the changes that it can apply."""
