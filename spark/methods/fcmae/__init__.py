"""FCMAE (arXiv 2301.00808), ConvNeXt V2's pre-training: the smallest decoder behind a sparse convolutional network."""
