"""Detectron2's training loop: configuration, start, hooks, checkpoints, the whole run."""
