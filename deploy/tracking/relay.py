"""The run's side of one tracker: a process, a bounded queue before it, and the counts of what became of its rows."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.process.children import dying_with_parent, kill_group
from deploy.tracking.tracker import Ending, Record

QUEUE_ROWS = 1000
"""Rows that wait for a tracker; beyond it the oldest is lost."""
SILENT_S = 10.0
"""A tracker that has not answered for so long is not waited for at the end."""
LEAVE_S = 2.0
"""How long a process may take to end after it has closed its record."""


class Relay:
    """Passes rows on to a tracker's process. No call but ``wait_ready`` and ``end`` waits for it."""

    def __init__(self, name: str, command: Sequence[str] | None = None, queue_rows: int = QUEUE_ROWS) -> None:
        """Starts the process; it ends with the thread that calls this. ``command``: what to start instead."""
        self.name, self._queue_rows = name, queue_rows
        self.refused = ""
        self.news: deque[str] = deque()
        """What there is to tell, oldest first; emptied by whoever tells it."""
        self._record: Record | None = None
        self._queue: deque[Mapping[str, Any]] = deque()
        self._offered = self._kept = self._lost = 0
        self._heard_s = 0.0  # when the tracker last answered, or had nothing to answer
        self._ready = self._failing = self._ending = self._gone = self._closed = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            # -P: the working directory is on no import path
            dying_with_parent(command or [sys.executable, "-P", "-m", "deploy.tracking.child", name], signal.SIGKILL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the run
        )
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"qherd-{name}", daemon=True).start()

    @property
    def lost(self) -> int:
        """How many rows, the end among them, are known not to be recorded."""
        return self._lost

    @property
    def failing(self) -> bool:
        """Whether the tracker has refused the newest that it was given, or does not answer."""
        return self._failing or (self._pending and time.monotonic() - self._heard_s > SILENT_S)

    @property
    def _pending(self) -> bool:
        return self._kept + self._lost < self._offered

    def wait_ready(self, until_s: float) -> bool:
        """Waits for the process; returns whether the tracker can be used. Where not, ``refused`` may have why."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._gone, until_s - time.monotonic())
            return self._ready and not self._gone

    def begin(self, record: Record) -> None:
        """Begins, or continues, the run's record."""
        with self._changed:
            self._record = record
            self._changed.notify_all()

    def offer(self, row: Mapping[str, float]) -> None:
        """Adds a row to the record. It must not change any more."""
        self._put({"row": row})

    def end(self, ending: Ending, patience_s: float) -> None:
        """Closes the record, waits so long for it at the most, and ends the process. What is not recorded by then is
        lost."""
        self._put({"end": ending._asdict()})
        with self._changed:
            closed = self._changed.wait_for(lambda: self._gone or not self._pending, patience_s)
        if closed:
            with contextlib.suppress(subprocess.TimeoutExpired):  # and ends processes of its own
                self._process.wait(LEAVE_S)
        self.close()

    def close(self) -> None:
        """Ends the process."""
        with self._changed:
            self._closed = True
            self._lost = self._offered - self._kept
            self._changed.notify_all()
        kill_group(self._process)
        self._process.wait()

    def _put(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            if not self._pending:
                self._heard_s = time.monotonic()
            self._offered += 1
            self._ending = "end" in message
            if self._gone:
                self._lost += 1
                return
            if len(self._queue) >= self._queue_rows:
                self._queue.popleft()
                self._lost += 1
            self._queue.append(message)
            self._changed.notify_all()

    def _next(self) -> Mapping[str, Any] | None:
        """Waits for the next message; None where there is none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._gone or self._queue)
            return None if self._closed or self._gone else self._queue.popleft()

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._gone or self._record)
            message: Mapping[str, Any] | None = None
            if self._record is not None:
                message = {"begin": self._record._asdict()}
        with contextlib.suppress(OSError):  # a process that has ended: the other thread notices
            while message is not None:
                stdin.write(json.dumps(message).encode() + b"\n")
                stdin.flush()
                message = self._next()
        with contextlib.suppress(OSError):
            stdin.close()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                with contextlib.suppress(ValueError), self._changed:
                    self._take(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            if self._ready and not self._closed and (self._pending or not self._ending):
                self.news.append(f"{self.name}: its process has ended; the run continues without it")
            self._lost = self._offered - self._kept
            self._queue.clear()
            self._changed.notify_all()

    def _take(self, reply: Mapping[str, Any]) -> None:
        """Counts what has become of a message. What it says has no secrets: see ``child``."""
        self._heard_s = time.monotonic()
        self._ready = self._ready or "ready" in reply
        self.refused = reply.get("refused", self.refused)
        self._kept += reply.get("kept", 0)
        self._lost += reply.get("lost", 0)
        if "began" in reply:
            self.news.append(f"{self.name} records the run: {reply['began']}")
        if "error" in reply and not self._failing:
            self.news.append(f"{self.name} refuses what it is given: {reply['error']}; the run continues")
        self._failing = "error" in reply
