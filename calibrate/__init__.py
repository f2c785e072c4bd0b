"""What quantization can know of the activations: importance matrices. Needs the extra `eval`."""
