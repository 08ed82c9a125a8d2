"""Training: the loop, one adapter's run, its checkpoints."""
