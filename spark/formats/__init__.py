"""Checkpoint formats. timm's naming is the hub: each format maps to it or from it, and explains every key."""
