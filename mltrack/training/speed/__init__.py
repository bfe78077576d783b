"""What makes a step faster and computes the same: a reader may skip this folder on the first day."""
