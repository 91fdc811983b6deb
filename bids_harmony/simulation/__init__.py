"""Made-up multi-site BIDS datasets with known truth."""
