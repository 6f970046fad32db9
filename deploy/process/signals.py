"""Being asked to stop: by Ctrl-C, SIGTERM, SIGHUP, or by whoever read the output and is gone.

Light, since the command imports it before everything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 75
"""Exit code of a run, or a study, that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""
ARM_AGAIN_S = 0.002
"""How long a signal may find the handlers that Ray has put in place of ours."""
T = TypeVar("T")


class Interrupted(Exception):
    """A start that was asked to stop before anything has run."""


class Stop:
    """The first signal asks for an orderly end, a second one ends at once. A SIGHUP never counts as the second one: a
    terminal that closes sends it from the kernel and from the shell."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.asked = False
        self.at_once: Callable[[], None] = lambda: None
        """What the second signal does before it ends the process."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listens while the block runs; not outside the main thread, where Python takes no handlers, and not to a
        SIGHUP that nohup has set to be ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in ours}
        self._arm(ours)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self) -> None:
        """Asks for an orderly end."""
        self.asked = True

    def check(self) -> None:
        """Raises Interrupted where a start was asked to stop."""
        if self.asked:
            raise Interrupted

    def _arm(self, numbers: list[signal.Signals]) -> None:
        for number in numbers:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if self.signal is not None and number != signal.SIGHUP:
            ignore_signals()  # a third one would begin it anew, within this
            try:
                self.at_once()
            finally:
                os._exit(128 + number)
        self.signal, self.asked = self.signal or number, True


def result(future: Future[T]) -> T:
    """Returns what a thread that starts or ends Ray comes to, and meanwhile installs the present handlers again and
    again: Ray puts one of its own for SIGTERM in their place as it starts, and the kernel's default as it ends, unseen
    by Python."""
    from concurrent.futures import wait

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if main else {}
    over = False
    while not over:
        over = bool(wait([future], ARM_AGAIN_S).done)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return future.result()


@contextlib.contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Ends the process without a traceback on Ctrl-C in the block, in which nothing is begun that could be ended."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as a shell has it for what runs in the background
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_signals() -> None:
    """Ignores all signals from now on: the work is done, and the exit code stands."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
