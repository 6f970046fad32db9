"""The journal: how far the learner has read each slot, about once a second, beside its checkpoints.

A learner that resumes from a checkpoint starts to read where the checkpoint did. What its predecessor read after that
is rolled back; where the log has it no more it is lost, and nothing else would show that it ever was. A journal is not
synced: it outlives a killed process, and a machine that loses power costs the ledger, not the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from replay.chunk import MAX_COUNT
from replay.ledger import Reading

_NAME = re.compile(r"read-(\d+)\.json")
MAX_BYTES = 16 << 20
"""A bigger file is no journal: 100,000 slots take a fifth of it."""


class Journal:
    """The journal of the learner with this ``fence``. Each has a file of its own, so that one that was replaced and
    thaws changes nothing of its successor's."""

    def __init__(self, folder: Path, fence: int) -> None:
        self._folder, self._fence = folder, fence

    def write(self, readings: Mapping[int, Reading]) -> None:
        """Replaces the journal. A disk that refuses stops nothing: checkpoints report it."""
        path = self._folder / f"read-{self._fence}.json"
        new = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps({str(slot): list(reading) for slot, reading in readings.items()}))
            new.replace(path)

    def since(self, fence: int) -> dict[int, Reading]:
        """Returns how far the learners before this one had come: of each slot the furthest, by the journals from
        ``fence`` on, which is the checkpoint's. Older ones are in the checkpoint's own ledger, and are removed."""
        furthest: dict[int, Reading] = {}
        for path in self._folder.glob("read-*.json"):
            found = _NAME.fullmatch(path.name)
            if found is None or int(found[1]) >= self._fence:
                continue
            if int(found[1]) < fence:
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            for slot, reading in _read(path).items():
                furthest[slot] = max(reading, furthest.get(slot, reading))
        return furthest


def _read(path: Path) -> dict[int, Reading]:
    """Returns what is in a journal; nothing where it cannot be one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return {}
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return {}
        readings = {int(slot): Reading(*map(int, each)) for slot, each in json.loads(data).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {slot: each for slot, each in readings.items() if slot >= 0 and 0 <= min(each) <= max(each) <= MAX_COUNT}
