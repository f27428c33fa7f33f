"""SimMIM: a simple framework for masked image modeling (arXiv 2111.09886)."""
