"""bids_harmony: harmonize T1-weighted brain scans to one reference site and predict there."""

__version__ = "0.3.0"
