"""Quality control: metrics of a scan, comparison with the reference, outliers, ratings."""
