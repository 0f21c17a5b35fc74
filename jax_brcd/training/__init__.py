"""Training: the loop of every stage, its batches, early stopping and checkpoints."""
