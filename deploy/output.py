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


class Output:
    """The present sys.stdout for a run that goes on whatever becomes of it; ``gone()`` is called once, when nobody
    reads it any more. What a full disk refuses is dropped."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone

    def write(self, text: str) -> None:
        self._safely(lambda: sys.stdout.write(text))

    def flush(self) -> None:
        self._safely(lambda: sys.stdout.flush())  # noqa: PLW0108  it may be None

    def _safely(self, call: Callable[[], object]) -> None:
        if sys.stdout is None:  # as >&- has it
            return
        try:
            call()
        except OSError as error:
            if error.errno in GONE:
                silence(sys.stdout)
                self._gone()

    def __getattr__(self, name: str) -> Any:
        """All else (isatty, encoding, fileno) is the stream's own."""
        return getattr(sys.stdout, name)
