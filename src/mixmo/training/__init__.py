"""Training: the step, objectives, optimisers, checkpoints."""
