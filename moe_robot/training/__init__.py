"""The training loop, optimiser and checkpoints."""
