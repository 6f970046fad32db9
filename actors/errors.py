"""Errors of environments, whose text is for the user."""

from __future__ import annotations

from replay.errors import QherdError


class EnvError(QherdError, ValueError):
    """An environment that cannot be used, or that misbehaved; the text has the remedy."""


class ContractError(EnvError):
    """An environment that returned what its spaces or Gymnasium's interface exclude."""
