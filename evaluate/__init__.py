"""The model itself, run one block at a time: perplexity, divergence from the source. Needs the extra `eval`."""
