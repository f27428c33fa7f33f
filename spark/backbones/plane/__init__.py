"""Pyramid transformers on a compact plane: the kept patches of an image, pushed together, at their true positions."""
