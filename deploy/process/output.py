"""stdout as it may be: a terminal that closes, a reader that has seen enough (head), a full disk."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import IO, Any

GONE = (errno.EPIPE, errno.EIO)
"""How a write fails whose reader, or whose terminal, is gone."""


def silence(stream: IO[str] | None) -> None:
    """Has a stream whose reader is gone write to nowhere, its buffer included."""
    with contextlib.suppress(OSError, AttributeError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


def stand_in() -> None:
    """Opens /dev/null in place of a stdin, stdout or stderr that is closed: the next file would have its number, and
    get what C, or another program, writes there. Messages for a closed stderr go nowhere, too: ``print`` would put
    them into stdout, among the figures there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
    if sys.stderr is None:  # as 2>&- has it
        sys.stderr = os.fdopen(2, "w", errors="replace", closefd=False)


def printable(text: str, but: str = "") -> str:
    """Returns a text without what a terminal would obey, ``but`` these characters."""
    return "".join(each if each.isprintable() or each in but else "�" for each in text)


class Output:
    """A run's stdout, usable whatever becomes of it; ``gone()`` is called once, when nobody reads it any more.
    What a full disk refuses is dropped."""

    def __init__(self, gone: Callable[[], None], stream: IO[str] | None = None) -> None:
        """Wraps the present sys.stdout, or ``stream``. ``gone()``: see the class."""
        self._gone, self._own = gone, stream

    @property
    def _stream(self) -> IO[str] | None:
        return self._own or sys.stdout  # which is None where >&- has closed it

    def write(self, text: str) -> None:
        self._safely(lambda stream: stream.write(text))

    def flush(self) -> None:
        self._safely(lambda stream: stream.flush())

    def _safely(self, call: Callable[[IO[str]], object]) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            call(stream)
        except OSError as error:
            if error.errno in GONE:
                silence(stream)
                self._gone()

    def __getattr__(self, name: str) -> Any:
        """Passes all else (isatty, encoding, fileno) on to the stream."""
        return getattr(self._stream, name)
