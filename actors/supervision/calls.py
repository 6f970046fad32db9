"""Calls of a Ray actor that are in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray

IN_FLIGHT = 2
"""Calls of one process at a time, so that it never waits for the driver."""


class Calls:
    """References to the calls of one Ray actor whose results have not been taken."""

    def __init__(self) -> None:
        self.in_flight: list[Any] = []
        """The oldest first."""

    def refill(self, call: Callable[[], Any]) -> None:
        """Makes calls until IN_FLIGHT of them are in flight."""
        while len(self.in_flight) < IN_FLIGHT:
            self.in_flight.append(call())

    def results(self, most: int | None = None, wait_s: float = 0.0) -> Iterator[Any]:
        """Yields what the ``most`` oldest calls (None: all) have returned, as far as they are done within ``wait_s``.

        Raises:
            ray.exceptions.RayError: a call has failed; the results before it have been yielded.
        """
        waited = self.in_flight[:most]
        done, _ = ray.wait(waited, num_returns=len(waited), timeout=wait_s)
        for call in done:
            self.in_flight.remove(call)
            yield ray.get(call)

    def drop(self) -> None:
        """Forgets all of them: those of a process that is gone."""
        self.in_flight.clear()
