"""What is known of a network before it is trained: verdicts, costs, coverage of timm."""
