"""Images of any source as tensors in [-1, 1]."""
