"""Runs at work: the three modes, and the driver that takes one of them from its start to its end."""
