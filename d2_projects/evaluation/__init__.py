"""Metrics, figures and galleries of what a detector finds."""
