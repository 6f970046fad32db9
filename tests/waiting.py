"""Waiting for another process or thread, and stopping one: always with a deadline, always undone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.server.embedded import EmbeddedServer


def until(true: Callable[[], object], what: str, deadline_s: float = 20.0) -> None:
    """Wait until ``true()``; fails at the deadline, with ``what`` was waited for."""
    end = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.01)


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    """SIGSTOP until the block ends."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)
