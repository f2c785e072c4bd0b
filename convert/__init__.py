"""Hugging Face checkpoints and adapters into GGUF tensors and keys."""
