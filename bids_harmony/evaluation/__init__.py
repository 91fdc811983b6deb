"""The ``evaluate`` level: run the paper's experiments on any dataset."""
