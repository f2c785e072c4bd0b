"""Files of encoders: models that turn a text into a vector, or into scores, and write nothing."""

from gguf.constants import Keys

from ggufsmith.container.values import Metadata

# Architectures of llama.cpp that have no other use, whether their files say so or not.
NAMES = frozenset(
    """bert nomic-bert nomic-bert-moe modern-bert eurobert neo-bert jina-bert-v2 jina-bert-v3 gemma-embedding
    llama-embed t5encoder""".split()
)


def is_encoder(metadata: Metadata) -> bool:
    """Whether a model with these keys reads a text in both directions, so that it predicts no token."""
    named = metadata.get(Keys.General.ARCHITECTURE)
    architecture = named.data if named is not None else ""
    causal = metadata.get(Keys.Attention.CAUSAL.format(arch=architecture))
    return architecture in NAMES or (causal is not None and not causal.data)


def embeds(metadata: Metadata) -> bool:
    """Whether it is made to turn texts into vectors, or into scores."""
    return is_encoder(metadata) or any(key.endswith(".pooling_type") for key in metadata)


def ranks(metadata: Metadata) -> bool:
    """Whether it gives scores: it has a classifier, whose outputs have names."""
    return any(key.endswith(".classifier.output_labels") for key in metadata)


def server_flag(metadata: Metadata) -> str:
    """The option with which llama-server does what the model is made for; "" for one that writes."""
    return "--reranking" if ranks(metadata) else "--embeddings" if embeds(metadata) else ""
