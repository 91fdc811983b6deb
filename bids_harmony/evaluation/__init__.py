"""The ``evaluate`` level: the paper's experiments on any dataset."""
