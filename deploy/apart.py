"""Environments that are played in the process of a command: apart from its results and from its signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from actors.contract import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def environments_apart() -> Iterator[None]:
    """While the block plays environments, what they print goes to stderr, and a signal leaves the block as an exception
    that is not theirs, so that they are closed; afterwards it has its usual effect."""
    with _output_apart(), _signals_apart():
        yield


@contextlib.contextmanager
def _output_apart() -> Iterator[None]:
    """Have Python's stdout, that of C and that of processes which are started meanwhile be stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C has not written yet would come after the results
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _signals_apart() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    came = list[int]()

    def leave(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Interrupted

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came and came[0] != signal.SIGINT:
            os.kill(os.getpid(), came[0])
