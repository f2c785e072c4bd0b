"""Names and descriptions: file names, `general.*` keys and model cards."""
