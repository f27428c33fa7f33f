"""Fine-tuning, linear probe and k-NN on labelled images."""
