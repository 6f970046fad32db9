"""What an actor answers to its supervisor, and where its time went."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from learner.cpu_time import CpuTime
from replay.chunk import Counters


class Work(NamedTuple):
    """Where an actor's seconds in ``collect`` went, and the weights it fetched; all cumulative."""

    seconds: float = 0.0
    env_seconds: float = 0.0
    """In the environments' steps."""
    log_seconds: float = 0.0
    """Waiting for the server: chunks, questions, and pauses while it was unavailable."""
    fetch_seconds: float = 0.0
    """Fetching, checking and loading weights."""
    wait_seconds: float = 0.0
    """Without credit, or before the first weights."""
    cpu_seconds: float = 0.0
    """On a core: of all of the above."""
    starved_seconds: float = 0.0
    """Ready to run while others had all cores: of all of the above."""
    fetches: int = 0
    fetched_bytes: int = 0

    @property
    def own_seconds(self) -> float:
        """Its own computing: inference, rows, encoding."""
        return max(0.0, self.seconds - self.env_seconds - self.log_seconds - self.fetch_seconds - self.wait_seconds)

    def plus(self, other: Work) -> Work:
        """Returns the sums, field by field."""
        return Work._make(a + b for a, b in zip(self, other, strict=True))


class Heartbeat(NamedTuple):
    """What an actor answers: its incarnation and that one's counters, a chunk in hand included; a line for each
    environment made anew since it last did: ``lane 3: RuntimeError: the bridge is down, after env step 812 of it``; and
    where its time went."""

    counters: Counters
    rebuilt: tuple[str, ...]
    work: Work = Work()
    incarnation: int = 0


class WorkMeter:
    """Measures where an actor's time goes; the environments' share is added by whoever steps them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._work: dict[str, Any] = Work()._asdict()

    @contextlib.contextmanager
    def charging(self, part: str) -> Iterator[None]:
        """Adds the block's seconds to ``part``, however it ends."""
        started = self._clock()
        try:
            yield
        finally:
            self._work[part] += self._clock() - started

    @contextlib.contextmanager
    def collecting(self) -> Iterator[float]:
        """Adds the block's seconds to the whole, and its CPU time, unless it raises; gives it the time it began at."""
        started, cpu = self._clock(), CpuTime.now()
        yield started
        self._work["seconds"] += self._clock() - started
        now = CpuTime.now()
        self._work["cpu_seconds"] += now.on_core_s - cpu.on_core_s
        self._work["starved_seconds"] += now.starved_s - cpu.starved_s

    def count_fetch(self, size: int) -> None:
        """Counts weights that were fetched, ``size`` bytes of them."""
        self._work["fetches"] += 1
        self._work["fetched_bytes"] += size

    def work(self, env_seconds: float) -> Work:
        """Returns what was measured so far."""
        return Work(**{**self._work, "env_seconds": env_seconds})
