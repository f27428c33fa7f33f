"""Schedules and layer-wise learning rates."""
