"""Quantized checkpoints: which tensors make one weight, and how its rows are made again."""
