"""What a run leaves in its folder: configuration, checkpoints, metrics, result record."""
