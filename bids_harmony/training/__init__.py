"""Training: from preprocessed derivatives to a model bundle."""
