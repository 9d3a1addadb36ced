"""Training and evaluating one trial: a method, a task, a seed and its settings."""
