"""Ray's functions on calls that tests finish by hand, and a clock."""

from __future__ import annotations

from typing import Any

import ray

from actors.heartbeat import Heartbeat
from replay.chunk import Counters

ALIVE = Heartbeat(Counters(), ())


class Call:
    """A reference: open until ``answer`` is set, which may be an exception."""

    def __init__(self, argument: Any) -> None:
        self.argument, self.done, self.answer = argument, False, None

    def finish(self, answer: Any = ALIVE) -> None:
        self.done, self.answer = True, answer


class Method:
    """A remote method that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def remote(self, argument: Any = None, *_: Any) -> Call:
        self.calls.append(Call(argument))
        return self.calls[-1]


class FakeRay:
    """Ray's three functions on these calls, and a clock."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.now = 1000.0
        self.killed: list[Any] = []
        self.cancelled: list[Call] = []
        self.waits: list[float | None] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, calls: list[Call], num_returns: int = 1, timeout: float | None = None) -> tuple[Any, Any]:
        self.waits.append(timeout)
        done = [call for call in calls if call.done][:num_returns]
        return done, [call for call in calls if call not in done]

    def get(self, call: Call, timeout: float | None = None) -> Any:
        del timeout
        assert call.done
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)
