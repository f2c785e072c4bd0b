"""ggml's block formats: kernels, recipes, importance matrices, budgets."""
