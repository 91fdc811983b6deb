"""The dataset: its scans, sidecars and tables, and the names of the outputs."""
