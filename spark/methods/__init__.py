"""Pre-training methods, a folder each, behind one interface (`base.Method`)."""
