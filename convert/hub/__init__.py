"""Models on Hugging Face and ModelScope, downloaded or read by ranges."""
