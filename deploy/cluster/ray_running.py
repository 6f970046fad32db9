"""Ray while it runs: in a thread of its own, and with its words kept off the terminal.

In a thread, since Ray sets handlers of signals in the main thread, and since what it starts ends with the thread that
started it. The main thread waits, and takes signals.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.cluster.ray_start import start_ray
from deploy.config.models import RunConfig
from deploy.process.signals import result


@contextlib.contextmanager
def ray_running(config: RunConfig, log: Path = Path(os.devnull)) -> Iterator[None]:
    """Starts Ray or joins a cluster, and ends that after the block. What Ray writes on stderr goes to ``log``."""
    with ThreadPoolExecutor(1, "ray") as thread, stderr_to(log):
        cleanup = contextlib.ExitStack()
        try:
            result(thread.submit(start_ray, config, cleanup))
            yield
        finally:
            result(thread.submit(cleanup.close))


@contextlib.contextmanager
def stderr_to(log: Path) -> Iterator[None]:
    """Has what is written on file descriptor 2 appended to ``log`` while the block runs: the stack traces of Ray's C++
    parts, which do not use sys.stderr, and what its threads print about lost nodes."""
    if sys.stderr is None:  # as 2>&- has it
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
