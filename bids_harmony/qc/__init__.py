"""Quality control: scan metrics, reference ranges, the anatomy guard, outliers and ratings."""
