"""File names by the GGUF convention, general.* keys, and model cards."""
