"""Which tensor makes the logits. Needs no torch, unlike the rest of a forward pass."""

from collections.abc import Container

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def head_among(tensors: Container[str]) -> str:
    """The name of the tensor that makes the logits: llama.cpp takes the embedding where there is no other."""
    return HEAD if HEAD in tensors else EMBEDDING
