"""Publishes weights and gate under the learner's lease, and keeps both alive while the learner is busy."""

from __future__ import annotations

import contextlib
import threading
import time

from replay.log import ChunkLog, LogError

REFRESH_S = 0.5
"""The gate is refreshed this often; it lapses by itself after 5 s, the lease after 15 s."""


STALLED_S = 5.0
"""A learner that has said nothing for so long, though its process lives, shuts the gate."""


class Publisher:
    """The one writer of gate, lease and weights, on a log (a connection) of its own.

    Without ``start`` each ``set`` writes at once, in the caller: the inline mode. After ``start`` a thread writes, at
    each change and every REFRESH_S; it keeps only the newest weights: a slow server never makes the learner wait.
    """

    def __init__(self, log: ChunkLog, fence: int) -> None:
        self._log, self._fence = log, fence
        self._state = threading.Condition()
        self._gate_open = False
        self._weights: bytes | None = None
        self._changed = self._stopped = False
        self._heard_s = time.monotonic()
        self._failure: LogError | None = None
        self._thread: threading.Thread | None = None
        self.published = 0
        self.published_bytes = 0
        self.unavailable = 0
        log.take_lease(fence)

    def start(self) -> None:
        """Write from a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="qherd-publisher", daemon=True)
        self._thread.start()

    def set(self, gate_open: bool, weights: bytes | None = None) -> None:
        """What is to be published. Raises what made the publisher give up: Fenced or Refused."""
        with self._state:
            self._heard_s = time.monotonic()
            if self._failure is not None:
                raise self._failure
            if gate_open == self._gate_open and weights is None:
                return
            self._gate_open = gate_open
            self._weights = weights or self._weights
            self._changed = True
            self._state.notify()
        if self._thread is None:
            self._write()

    def stop(self) -> None:
        """End the thread, shut the gate and give the lease up."""
        with self._state:
            self._stopped = True
            self._state.notify()
        if self._thread is not None:
            self._thread.join(timeout=10)
        with contextlib.suppress(LogError):  # it lapses by itself
            self._log.release_lease(self._fence)

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._changed or self._stopped, timeout=REFRESH_S)
                if self._stopped:
                    return
            try:
                self._write()
            except LogError as error:
                with self._state:
                    self._failure = error
                return

    def _write(self) -> None:
        """Publish the newest state; a server that is away is tried again at the next refresh, with the same state."""
        with self._state:
            stalled = self._thread is not None and time.monotonic() - self._heard_s > STALLED_S
            gate_open, weights = self._gate_open and not stalled, self._weights
            self._weights, self._changed = None, False
        try:
            self._log.publish(self._fence, gate_open, weights)
        except LogError as error:
            if not error.temporary:
                raise
            with self._state:
                self.unavailable += 1
                self._weights = self._weights or weights
            return
        if weights is not None:
            self.published += 1
            self.published_bytes += len(weights)
