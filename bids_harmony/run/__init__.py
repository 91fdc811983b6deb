"""Implementation of the levels: resuming runs, and processing scans in parallel."""
