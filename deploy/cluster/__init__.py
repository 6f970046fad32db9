"""Ray: what a run asks it for, how it is started or joined, and how it is kept quiet."""
