"""What is about no model: files, processes, devices, progress, plots."""
