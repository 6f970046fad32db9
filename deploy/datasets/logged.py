"""The whole episodes that a run's chunk log still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.config.errors import ConfigError
from deploy.datasets.episode import Episode
from replay.attached import find_description
from replay.chunk import BOUNDARY, CORE_STATE, FIRST, STANDARD, TERMINATED, TRUNCATED, BadChunk, Chunk, Codec, Schema
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import ChunkId

Array = npt.NDArray[Any]
PAGE_BYTES = 32 << 20


@dataclass
class Held:
    """What the log held: ``rows``; of these those of no whole episode, ``left_rows``: its beginning is trimmed, it is
    still being played, or a chunk between is missing; ``refused`` chunks."""

    rows: int = 0
    left_rows: int = 0
    refused: int = 0


def logged_episodes(logs: Sequence[RunInspector], run: str, schema: Schema, held: Held) -> Iterator[Episode]:
    """Yields the whole episodes that a run's servers hold now, slot by slot and lane by lane; counts in ``held``. A
    run that is at work meanwhile goes on.

    Raises ConfigError where its rows are not of ``schema``; NotThere, and what a RedisLog raises, where it cannot be
    read.
    """
    description = find_description(logs, run)
    if replace(description.row_schema, core=0) != schema:  # what a recurrent policy remembers is no part of a dataset
        raise ConfigError(
            f"the rows of run {run} are {description.row_schema}, and its environment has {schema}: the environment "
            "has changed since; put it back as it was"
        )
    codec = Codec(description.row_schema, run)
    for slot in sorted(description.slots):
        lanes: list[_Lane] = []
        newest = ChunkId()
        for chunk in _chunks(logs, slot, codec, held):
            follows = ChunkId.of(chunk) == (newest.incarnation, newest.seq + 1) and len(lanes) == chunk.lanes
            newest = ChunkId.of(chunk)
            if not follows:
                lanes = [_Lane() for _ in range(chunk.lanes)]
            for index, lane in enumerate(lanes):
                for episode in lane.add(chunk, index):
                    held.left_rows -= len(episode.obs)
                    yield episode


def _chunks(logs: Sequence[RunInspector], slot: int, codec: Codec, held: Held) -> Iterator[Chunk]:
    """Yields the chunks of a slot, up to the newest one of now."""
    last = max(log.last_id(slot) for log in logs)
    cursor = ChunkId()
    while cursor < last:
        entries = [entry for log in logs for entry in log.read({slot: cursor}, PAGE_BYTES)]
        if not entries:  # trimmed meanwhile
            return
        for entry in entries:
            cursor = entry.id
            if entry.id > last:
                return
            try:
                chunk = codec.decode(entry.data, slot, *entry.id)
            except BadChunk:
                held.refused += 1
                continue
            held.rows += chunk.rows
            held.left_rows += chunk.rows
            yield chunk


class _Lane:
    """The rows of a lane's episode so far; none where its first row was not seen."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Array]] = []

    def add(self, chunk: Chunk, lane: int) -> Iterator[Episode]:
        """Takes the lane's rows of the chunk after the one before; yields the episodes that they end."""
        columns = {name: column[:, lane] for name, column in chunk.columns.items() if name != CORE_STATE}
        flags, start = columns["flags"], 0
        for boundary in np.flatnonzero(flags & BOUNDARY).tolist():
            self._append(columns, start, boundary + 1)
            start = boundary + 1
            if (episode := self._finished()) is not None:
                yield episode
        self._append(columns, start, len(flags))

    def _append(self, columns: Mapping[str, Array], start: int, end: int) -> None:
        if start == end:
            return
        part = {name: column[start:end] for name, column in columns.items()}
        if part["flags"][0] & FIRST:
            self._parts = [part]
        elif self._parts:
            self._parts.append(part)

    def _finished(self) -> Episode | None:
        """Returns the episode up to its boundary row, if all of it is here and it came to an end of its own."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        flags = rows["flags"]
        if len(flags) < 2 or not flags[-2] & (TERMINATED | TRUNCATED):
            return None
        extras = {name: rows[name] for name in rows.keys() - set(STANDARD)}
        return Episode(
            rows["obs"],
            rows["action"][:-1],
            rows["reward"][:-1],
            bool(flags[-2] & TERMINATED),
            bool(flags[-2] & TRUNCATED),
            extras,
        )
