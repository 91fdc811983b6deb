"""Quality metrics of one scan."""
