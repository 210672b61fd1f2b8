"""From Qlib frames to tensors."""
