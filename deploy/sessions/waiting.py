"""Work that holds up the only thread, and what is shown meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from actors.envs import REPORT_EVERY_S
from deploy.sessions.base import Notify


@contextlib.contextmanager
def notifying(notify: Notify, what: str) -> Iterator[None]:
    """Shows now and then, from another thread, for how long the block has been at work."""
    over, began_s = threading.Event(), time.monotonic()

    def notify_now() -> None:
        while not over.wait(REPORT_EVERY_S):
            notify(f"{what}, for {time.monotonic() - began_s:.0f} s now")

    thread = threading.Thread(target=notify_now, name="qherd-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
