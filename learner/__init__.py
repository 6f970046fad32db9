"""The learner: TD functions, networks, weights, checkpoints and the update loop.

``learner.load_policy(run)`` returns what a run has learned, for use in any program; see learner/policy.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["load_policy"]

if TYPE_CHECKING:
    from learner.policy import load_policy
else:

    def __getattr__(name):
        """Imports what ``load_policy`` needs when it is asked for: actors import this package and need none of it."""
        if name == "load_policy":
            from learner.policy import load_policy

            return load_policy
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
