"""Backbones for Detectron2, and weights for them."""
