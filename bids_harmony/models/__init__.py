"""Networks, the model bundle, and what is done with them at run time."""
