"""What each level does, resuming, and how scans are processed side by side."""
