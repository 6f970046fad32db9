"""The outside: command line, configuration, launching and the embedded server.

``deploy.Training`` starts, watches and stops a run from any program; see deploy/training.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Training"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from deploy.training import Training
else:

    def __getattr__(name):
        """Imports what ``Training`` needs when it is asked for: the command line imports this package and no more."""
        if name == "Training":
            from deploy.training import Training

            return Training
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
