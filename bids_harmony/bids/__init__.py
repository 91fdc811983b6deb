"""Reading of the input dataset (scans, sidecars, tables) and naming of the outputs."""
