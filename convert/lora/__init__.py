"""LoRA adapters: read, merged into a base, or written as GGUF adapters."""
