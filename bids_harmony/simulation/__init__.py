"""Made-up heads with known truth, scanned by made-up scanners into BIDS datasets."""
