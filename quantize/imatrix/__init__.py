"""Importance matrices: what they hold, their two file formats, and how one fits a model."""
