"""Evaluate checkpoints, and turn the results into tables and a report."""
