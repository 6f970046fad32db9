"""Keeps the slots' actors at work: two calls in flight each, restarts within a budget, an orderly end.

Ray restarts nothing here (max_restarts=0): a restarted actor needs a new incarnation, which only the run directory
hands out.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.evaluator import Verdict
from replay.log import LogError

COLLECT_S = 1.0
IN_FLIGHT = 2
BUDGET_WINDOW_S = 600.0
BACKOFF_S = 0.5


class CrashLoopError(RuntimeError):
    """A worker died more often than its budget allows; the text has its last error, ``details`` its traceback."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class Restarts:
    """A budget of restarts within ``BUDGET_WINDOW_S``, and when the next may happen."""

    name: str
    budget: int
    deaths: deque[float] = field(default_factory=deque)
    total: int = 0

    def died(self, error: Exception) -> float:
        """Book a death; returns the seconds to wait before the restart. Raises CrashLoopError beyond the budget."""
        now = time.monotonic()
        self.deaths.append(now)
        while self.deaths[0] < now - BUDGET_WINDOW_S:
            self.deaths.popleft()
        if len(self.deaths) > self.budget:
            raise CrashLoopError(
                f"{self.name} died {len(self.deaths)} times within {BUDGET_WINDOW_S:.0f} s (actors.restarts allows "
                f"{self.budget}); the last time of {cause(error)}",
                str(error),
            )
        self.total += 1
        return float(BACKOFF_S * 2 ** (len(self.deaths) - 1))


@dataclass
class _Slot:
    handle: Any
    calls: list[Any]
    restarts: Restarts
    restart_at_s: float | None = None
    heard_s: float | None = None
    death: str | None = None

    def told(self, now_s: float) -> str:
        """What this actor was last known to do."""
        if self.restart_at_s is not None:
            return f"died ({self.death})"
        if self.heard_s is None:
            return "has not answered yet"
        return f"last answered {now_s - self.heard_s:.0f} s ago" + (
            f", died before ({self.death})" if self.death else ""
        )


class Supervisor:
    """The actors of all slots. ``start(slot)`` starts a slot's actor under a new incarnation and returns its handle."""

    def __init__(self, start: Callable[[int], Any], slots: int, restarts: int, say: Callable[[str], None]) -> None:
        self._start, self._say = start, say
        self._slots = [_Slot(start(slot), [], Restarts(f"actor {slot}", restarts)) for slot in range(slots)]
        for slot in self._slots:
            self._refill(slot)

    @property
    def alive(self) -> int:
        """Actors that have answered and did not die since."""
        return sum(slot.heard_s is not None for slot in self._slots)

    @property
    def restarts(self) -> int:
        """Restarts so far, over all slots."""
        return sum(slot.restarts.total for slot in self._slots)

    def told(self) -> str:
        """What each actor was last known to do, in one line."""
        now_s = time.monotonic()
        return "; ".join(f"actor {index} {slot.told(now_s)}" for index, slot in enumerate(self._slots))

    def tick(self) -> None:
        """Take the answers that are there, ask again, restart who died. Does not wait."""
        for index, slot in enumerate(self._slots):
            if slot.restart_at_s is not None:
                if time.monotonic() >= slot.restart_at_s:
                    self._restart(index, slot)
                continue
            done, _ = ray.wait(slot.calls, num_returns=len(slot.calls), timeout=0)
            for call in done:
                slot.calls.remove(call)
                try:
                    ray.get(call)
                except ray.exceptions.RayError as error:
                    self._bury(index, slot, error)
                    break
                slot.heard_s = time.monotonic()
            else:
                self._refill(slot)

    def stop(self, deadline_s: float) -> None:
        """Flush all actors within one deadline, then end them."""
        flushes = [slot.handle.flush.remote(deadline_s / 2) for slot in self._slots if slot.restart_at_s is None]
        if flushes:
            ray.wait(flushes, num_returns=len(flushes), timeout=deadline_s)
        for slot in self._slots:
            ray.kill(slot.handle)

    def _refill(self, slot: _Slot) -> None:
        while len(slot.calls) < IN_FLIGHT:
            slot.calls.append(slot.handle.collect.remote(COLLECT_S))

    def _restart(self, index: int, slot: _Slot) -> None:
        try:
            slot.handle = self._start(index)
        except LogError as error:  # the next incarnation's number depends on the server, which may be away
            if not error.temporary:
                raise
            slot.restart_at_s = time.monotonic() + BACKOFF_S
            return
        slot.calls, slot.restart_at_s = [], None
        self._refill(slot)

    def _bury(self, index: int, slot: _Slot, error: Exception) -> None:
        slot.heard_s, slot.death = None, cause(error)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(slot.handle)
        wait_s = slot.restarts.died(error)
        slot.restart_at_s = time.monotonic() + wait_s
        self._say(f"actor {index} died ({slot.death}); it restarts in {wait_s:.1f} s")


class Silence:
    """Notices when nothing comes in any more: an environment that hangs would have the run wait for ever."""

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s, self._clock = most_s, clock
        self._env_steps: float | None = None
        self._since_s = 0.0

    def too_long(self, figures: Mapping[str, float]) -> bool:
        """Whether ``figures``, the learner's, have shown no new env step for too long. A shut gate or a server that is
        away is somebody else's silence."""
        env_steps = figures.get("env_steps")
        excused = not figures.get("gate_open") or figures.get("servers_down")
        if env_steps is None or env_steps != self._env_steps or excused:
            self._env_steps, self._since_s = env_steps, self._clock()
        return self._clock() - self._since_s > self._most_s


class Screening:
    """Asks the evaluator for verdicts, so that screening takes no more than ``cpu_share`` of one core."""

    def __init__(
        self,
        start: Callable[[int], Any],
        candidate: Callable[[], Any],
        cpu_share: float,
        restarts: int,
        say: Callable[[str], None],
    ) -> None:
        """``start(restart)`` starts the evaluator; ``candidate()`` is a reference to the packed policy to play next."""
        self._start, self._candidate, self._cpu_share, self._say = start, candidate, cpu_share, say
        self._handle = start(0)
        self._screening: tuple[Any, Any] | None = None
        self._not_before_s = 0.0
        self._budget = Restarts("the evaluator", restarts)

    @property
    def restarts(self) -> int:
        """Restarts so far."""
        return self._budget.total

    def tick(self, learning: bool) -> tuple[Verdict, Any] | None:
        """A verdict and the reference to the policy it is about, if one has come in. Does not wait.

        Asks for the next when ``learning`` and the evaluator's share allow.
        """
        result = None
        if self._screening is not None and ray.wait([self._screening[0]], timeout=0)[0]:
            (call, policy), self._screening = self._screening, None
            try:
                verdict: Verdict = ray.get(call)
            except ray.exceptions.RayError as error:
                self._not_before_s = time.monotonic() + self._budget.died(error)
                self._say(f"the evaluator died ({cause(error)}); it restarts")
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(self._handle)
                self._handle = self._start(self._budget.total)
            else:
                pause_s = verdict.seconds * (1 / self._cpu_share - 1) if verdict.confirmed is None else 0.0
                self._not_before_s = time.monotonic() + pause_s
                result = verdict, policy
        if self._screening is None and learning and time.monotonic() >= self._not_before_s:
            policy = self._candidate()
            self._screening = self._handle.screen.remote(policy), policy
        return result

    def stop(self) -> None:
        """End the evaluator."""
        ray.kill(self._handle)


def cause(error: Exception) -> str:
    """The innermost reason of a Ray error, in one line."""
    inner = getattr(error, "cause", None) or error
    lines = str(inner).strip().splitlines() or [type(inner).__name__]
    return f"{type(inner).__name__}: {lines[-1] if isinstance(inner, ray.exceptions.RayError) else lines[0]}"
