"""SparK: masked image modelling for convolutional networks (arXiv 2301.03580)."""

__version__ = "0.1.0"
