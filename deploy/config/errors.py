"""Errors that a user is shown as a message: what is wrong, and what to do."""

from __future__ import annotations

from replay.errors import QherdError


class ServerError(QherdError, RuntimeError):
    """The embedded server cannot do what was asked; the message has the reason and the remedy."""


class RunFailedError(QherdError, RuntimeError):
    """A run that cannot continue; the text names the part that failed and its error. ``details`` is that part's own
    traceback."""

    exit_code = 1

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class RunDirError(QherdError, ValueError):
    """A run directory that is there already, is not there, or is damaged; the text has which, and the remedy."""


class ConfigError(QherdError, ValueError):
    """A configuration that cannot be used; the text names the value and the remedy."""


class OptionsError(QherdError):
    """Options on the command line that do not fit together. No ValueError, which tyro would take for its own."""
