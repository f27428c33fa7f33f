"""Is it learning? Frozen features classified, and watched for collapse."""
