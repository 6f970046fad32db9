"""The outside: command line, configuration, launching and the embedded server."""

__version__ = "0.1.0"
