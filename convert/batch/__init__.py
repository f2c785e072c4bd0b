"""Job files: many models, converted and quantized in one run."""
