"""What one check of ``qherd doctor`` has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from replay.errors import QherdError

State = Literal["ok", "warning", "problem"]


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""


def guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yields what ``look`` finds; an error for users that it raises becomes a problem."""
    try:
        yield from look()
    except (QherdError, OSError, ValueError) as error:
        yield Check(name, "problem", str(error))
