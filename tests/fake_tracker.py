"""A tracker's process as a run has it, with a tracker that does what the command line asks for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from deploy.tracking import child
from deploy.tracking.tracker import Ending, Record, Refused

TRIES = 3


class FakeTracker:
    """``hang``: never returns from a call; ``raise``: refuses each row; ``slow``: takes 20 ms for each; ``die``: ends
    its process at the third row; ``late``: begins at the third attempt; ``refuse``: cannot be used; ``noise``: prints
    what is no reply; ``keep``: does what is asked."""

    def __init__(self, manner: str) -> None:
        self._manner, self._attempts, self._rows = manner, 0, 0

    def check(self) -> None:
        if self._manner == "refuse":
            raise Refused("no key: bring one")

    def begin(self, record: Record) -> str:
        self._attempts += 1
        if self._manner == "late" and self._attempts < TRIES:
            raise OSError(f"no server, with the key {os.environ.get('WANDB_API_KEY')}")
        if self._manner == "noise":
            print('{"kept": 1000000}', flush=True)
        return f"{record.run} as {record.key}"

    def log(self, row: Mapping[str, float]) -> None:
        self._rows += 1
        if self._manner == "hang":
            time.sleep(3600)
        if self._manner == "raise":
            raise OSError("the disk is full")
        if self._manner == "slow":
            time.sleep(0.02)
        if self._manner == "die" and self._rows == TRIES:
            os._exit(9)

    def end(self, ending: Ending) -> None:
        del ending


if __name__ == "__main__":
    child.RETRY_S = 0.01
    child.run(FakeTracker(sys.argv[1]))
