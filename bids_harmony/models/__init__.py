"""Networks, model bundles, and inference."""
