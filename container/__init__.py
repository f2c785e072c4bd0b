"""The GGUF file: read, lay out, write, split and merge; errors, and what else all packages need."""
