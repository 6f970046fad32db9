"""Environments that are played in the process of a command: apart from its output and from its signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from actors.contract import Interrupted
from deploy.process.signals import SIGNALS


@contextlib.contextmanager
def environments_apart() -> Iterator[None]:
    """Separates environments that the block plays from the command: what they print goes to stderr, and a signal
    leaves the block as an exception that is not theirs, so that they are closed; afterwards it has its usual effect."""
    with output_apart(), _signals_apart():
        yield


@contextlib.contextmanager
def output_apart() -> Iterator[TextIO | None]:
    """Has Python's stdout, that of C and that of processes which are started meanwhile be stderr; yields a stream to
    what was stdout before, None where there is none."""
    if sys.stdout is None:  # as >&- has it
        yield None
        return
    sys.stdout.flush()
    kept, before = os.dup(1), sys.stdout
    own = _stream_to(kept, before)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield own
    finally:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C has not written yet would come after the results
        os.dup2(kept, 1)
        if own is not before:
            with contextlib.suppress(OSError):  # what a full disk has refused
                own.close()
        os.close(kept)


def _stream_to(descriptor: int, stdout: TextIO) -> TextIO:
    """Returns a stream like ``stdout`` to another file descriptor; ``stdout`` itself where it does not write to its
    own, as in a notebook."""
    with contextlib.suppress(OSError, AttributeError):
        if stdout.fileno() == 1:
            return open(descriptor, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False)
    return stdout


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
