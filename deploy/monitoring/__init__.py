"""What can be seen of a run while it works: on the terminal, and by Prometheus."""
