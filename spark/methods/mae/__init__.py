"""MAE: masked autoencoders are scalable vision learners (arXiv 2111.06377)."""
