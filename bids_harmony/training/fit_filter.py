"""Which scans to train on: see :mod:`bids_harmony.fit_filter`."""

from bids_harmony.fit_filter import select_scans

__all__ = ["select_scans"]
