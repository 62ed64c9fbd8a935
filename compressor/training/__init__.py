"""Training: lists of candidates, batches, the loop, its checkpoints and its teachers' labels."""
