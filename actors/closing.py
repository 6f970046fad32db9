"""Closing environments: each one that was made, once, and within a bound, whatever its ``close`` does."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import gymnasium as gym

from actors.contract import name_of
from actors.supervision.restarts import cause

CLOSE_S = 5.0
"""Seconds that closing all environments of a process may take, before each further one gets ``LATE_S``."""
LATE_S = 0.2


class _TooLong(BaseException):
    """Raised in a ``close`` that takes too long; no Exception, which it might catch."""


def close_all(envs: Iterable[gym.Env[Any, Any]], seconds: float = CLOSE_S) -> list[str]:
    """Closes each of them, whatever another one's ``close`` does. Returns a line for each that raised or took too long.

    In the calling thread, since windows and GPU contexts belong to theirs. One that hangs in Python or in a system
    call is interrupted; one that hangs in C is not, and whoever waits for this process has a bound of their own.
    """
    until_s, notices = time.monotonic() + seconds, list[str]()
    for env in envs:
        try:
            with _at_most(max(LATE_S, until_s - time.monotonic())):
                env.close()
        except _TooLong:
            notices.append(f"{name_of(env)}: close() did not return within {seconds:g} s, and was given up")
        except Exception as error:  # an environment may raise anything
            notices.append(f"{name_of(env)}: close() raised {cause(error)}")
        except SystemExit:
            notices.append(f"{name_of(env)}: close() called sys.exit()")
    return notices


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupts the block after so long, in the main thread; elsewhere there is no means to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, over)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)
