"""Pictures as arrays: decode, resize, normalise, augment."""
