"""A run's directory: what is written once, what grows, and the counts that survive everything."""
