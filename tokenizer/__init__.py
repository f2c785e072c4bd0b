"""Vocabularies, merges, pre-tokenizers and chat templates as GGUF keys."""
