"""Training of model bundles from preprocessed derivatives."""
