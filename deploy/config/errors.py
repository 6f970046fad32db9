"""Errors that a user is shown as a message: what is wrong, and what to do."""

from __future__ import annotations

from replay.errors import QherdError


class ServerError(QherdError, RuntimeError):
    """The embedded server cannot do what was asked; the message says why and what to do."""


class RunFailedError(QherdError, RuntimeError):
    """A run that cannot go on; the text says which part failed of what. ``details`` is that part's own traceback."""

    exit_code = 1

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class RunDirError(QherdError, ValueError):
    """A run directory that is there already, is not there, or is damaged; the text says which and what to do."""


class ConfigError(QherdError, ValueError):
    """A configuration that cannot be used; the text names the value and the remedy."""
