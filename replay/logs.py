"""The log files of a run's processes: ``runs/NAME/logs``, a file per process. Nothing is logged to a terminal.

Each part has a logger of its own: ``qherd.actor``, ``qherd.evaluator``, ``qherd.learner``, ``qherd.replay``,
``qherd.driver``. Until ``LogFile.start`` their records go nowhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Level = Literal["debug", "info", "warning"]
MAX_BYTES = 5 << 20
"""A file that would become longer is renamed to ``NAME.log.1``, in place of the one before."""
_QHERD = logging.getLogger("qherd")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class LogFile:
    """The log of one process: ``folder/name.log``, with records from ``level`` on."""

    folder: Path
    name: str
    level: Level

    def start(self, *, stderr: bool = False) -> Callable[[], None]:
        """Starts to log this process, after what the file already has; returns what ends it.

        With ``stderr`` also there: Ray redirects a worker's to a file of its own on the worker's node, where the run's
        folder may not be. A file that cannot be written is passed over in silence, since a log must not end a run;
        each record tries again.
        """
        handlers: list[logging.Handler] = [_RunFile(self.folder / f"{self.name}.log")]
        if stderr:
            handlers.append(_Stream(sys.stderr))
        before = _QHERD.level, _QHERD.propagate
        _QHERD.setLevel(self.level.upper())
        _QHERD.propagate = False  # the root logger may print on the terminal, where a user's module has set it up so
        for handler in handlers:
            handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            _QHERD.addHandler(handler)

        def stop() -> None:
            for handler in handlers:
                _QHERD.removeHandler(handler)
                with contextlib.suppress(OSError):  # what a full disk refused is in the buffer still
                    handler.close()
            _QHERD.setLevel(before[0])
            _QHERD.propagate = before[1]

        _QHERD.info("process %d on %s", os.getpid(), socket.gethostname())
        return stop


def failures_logged(
    logger: logging.Logger, *expected: type[BaseException]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Has what a function raises logged with its traceback, and passed on. ``expected`` exceptions are not logged."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except expected:
                raise
            except Exception as error:
                logger.error("failed: %s: %s", type(error).__name__, error, exc_info=True)
                raise
            except BaseException as error:  # a signal, or an environment that calls sys.exit()
                logger.warning("interrupted by %r", error)
                raise

        return call

    return decorate


class _Stream(logging.StreamHandler[IO[str]]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drops what cannot be written; logging's own would print on the terminal."""


class _RunFile(RotatingFileHandler):
    """Appends to a file that is made with its first record, for its owner alone."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True)

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(mode=0o700, exist_ok=True)
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_private)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drops what cannot be written: see ``LogFile.start``."""


def _private(path: str, flags: int) -> int:
    # neither through a link nor waiting for whoever would read from a pipe
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


class _Formatter(logging.Formatter):
    """Begins each record with its local time and zone; a record's further lines are indented, so that none can pass for
    a record of its own, and control characters are escaped, since an environment's words may have any."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().format(record))
        return text.replace("\n", "\n    ")
