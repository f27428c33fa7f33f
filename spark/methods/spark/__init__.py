"""SparK (arXiv 2301.03580): sparse masked modelling for convolutional networks."""
