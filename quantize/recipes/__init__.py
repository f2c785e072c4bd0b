"""Which type each tensor gets: file types, recipe files, and the rules of llama.cpp."""
