"""Fine-tuning, linear probe and k-NN on labeled images."""
