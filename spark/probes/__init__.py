"""Monitoring of pre-training: k-NN and linear probes on frozen features, and collapse detection."""
