"""Programs that were run once and are kept."""
