"""Tables of tasks: literals only."""
