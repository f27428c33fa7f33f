"""Times a training step, and the loader alone."""
