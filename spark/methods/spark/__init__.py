"""SparK (arXiv 2301.03580): sparse masked modeling for convolutional networks."""
