"""Studies: many runs of one file, over environments, variants and seeds."""
