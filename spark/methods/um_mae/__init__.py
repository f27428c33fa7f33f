"""UM-MAE (arXiv 2205.10063): uniform masking for pyramid transformers."""
