"""From a GGUF file back to a Hugging Face folder."""
