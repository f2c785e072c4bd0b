"""Vocabularies, pre-tokenizers and chat templates, from Hugging Face folders to GGUF keys and back."""
