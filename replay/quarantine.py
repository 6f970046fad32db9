"""The quarantine: the first few bad chunks, kept as files for inspection."""

from __future__ import annotations

import contextlib
from pathlib import Path

from replay.chunk_log.protocol import Entry

QUARANTINED = 5
"""How many bad chunks are kept."""


class Quarantine:
    """Keeps bad chunks in a folder; ``folder`` None keeps none. ``kept``: how many so far."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self.kept = folder, 0

    def keep(self, entry: Entry, reason: str) -> None:
        """Writes a bad chunk down, if it is one of the first."""
        if self._folder is None or self.kept >= QUARANTINED:
            return
        self.kept += 1
        with contextlib.suppress(OSError):  # a full disk must not stop the learner
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{entry.slot}-{entry.id}.{reason}.chunk").write_bytes(entry.data)
