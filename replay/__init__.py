"""The replay memory: a chunk log (in memory or Redis), its mirror, samplers and the limiter.

``replay.attach(url, run)`` reads a run's replay memory from any process; see replay/attached.py.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

logging.getLogger("qherd").addHandler(logging.NullHandler())  # without one Python prints warnings on stderr

__all__ = ["attach"]

if TYPE_CHECKING:
    from replay.attached import attach
else:

    def __getattr__(name):
        """Import what ``attach`` needs when it is asked for: actors import this package and need none of it."""
        if name == "attach":
            from replay.attached import attach

            return attach
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
