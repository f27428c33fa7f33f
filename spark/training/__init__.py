"""The training loop and what a pre-training needs around it."""
