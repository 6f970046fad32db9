"""Chunks as an actor writes them, for the tests of the replay memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.assembler import NStepAssembler
from replay.buffer import ReplayBuffer
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk, Codec, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkId, ChunkLog
from replay.mirror import Mirror
from replay.reader import Reader
from replay.samplers.uniform import UniformSampler

RUN = "a-run"
SCHEMA = Schema((1,), "float32", 4)
CODEC = Codec(SCHEMA, RUN)
ENDS = (TERMINATED, TRUNCATED, TERMINATED | TRUNCATED)


class FakeActor:
    """Rows in NEXT_STEP order with random ends; every observation is a number of its own, so it names its row."""

    def __init__(
        self, slot: int = 0, lanes: int = 1, seed: int = 0, p_end: float = 0.2, numbers: Iterator[int] | None = None
    ) -> None:
        self.slot, self.lanes = slot, lanes
        self._rng = np.random.default_rng([seed, slot])
        self._p_end = p_end
        self._numbers = itertools.count() if numbers is None else numbers
        self._incarnation = 0
        self.restart()

    def restart(self) -> None:
        """The next incarnation: new episodes, ids and counters from the start."""
        self._incarnation += 1
        self._seq = 0
        self._counters = Counters()
        self._next_flags = [FIRST] * self.lanes

    def chunk(self, time_steps: int = 4) -> Chunk:
        """The actor's next ``time_steps`` rows per lane."""
        grid = (time_steps, self.lanes)
        flags = np.zeros(grid, np.uint8)
        for t, lane in np.ndindex(grid):
            flags[t, lane] = self._row_flags(lane)
        self._seq += 1
        self._counters = self._counters.plus(counted(flags))
        q_taken, q_max = self._rng.normal(size=(2, *grid)).astype(np.float32)
        return Chunk(
            slot=self.slot,
            incarnation=self._incarnation,
            seq=self._seq,
            weight_version=1,
            counters=self._counters,
            obs=np.array([next(self._numbers) for _ in range(flags.size)], np.float32).reshape(*grid, 1),
            action=self._rng.integers(0, SCHEMA.num_actions, grid, dtype=np.int32),
            reward=self._rng.normal(size=grid).astype(np.float32),
            q_taken=q_taken,
            q_max=q_max,
            flags=flags,
        )

    def reflagged(self, chunk: Chunk, flags: npt.NDArray[np.uint8]) -> Chunk:
        """Its newest chunk with other flags: an actor that is wrong about the order of rows, and counts what it
        sends."""
        less = Counters._make(-count for count in counted(chunk.flags))
        self._counters = self._counters.plus(less).plus(counted(flags))
        return replace(chunk, flags=flags, counters=self._counters)

    def send(self, log: ChunkLog, time_steps: int = 4) -> Chunk:
        """Append the next chunk to ``log``; returns it."""
        chunk = self.chunk(time_steps)
        append(log, chunk)
        return chunk

    def _row_flags(self, lane: int) -> int:
        flags = self._next_flags[lane]
        if flags == BOUNDARY:
            self._next_flags[lane] = FIRST
        elif self._rng.random() < self._p_end:
            flags |= int(self._rng.choice(ENDS))
            self._next_flags[lane] = BOUNDARY
        else:
            self._next_flags[lane] = 0
        return flags


def reader_on(
    log: ChunkLog,
    codec: Codec,
    mirror: Mirror,
    n: int,
    gamma: float,
    reward_scale: float = 1.0,
    quarantine: Path | None = None,
    **options: Any,
) -> Reader:
    """A reader that fills ``mirror`` with n-step transitions; ``options``: the assembler's."""
    assembler = NStepAssembler(mirror, n, gamma, reward_scale, **options)
    buffer = ReplayBuffer(mirror, assembler, UniformSampler(mirror, np.random.default_rng(0)))
    return Reader(log, codec, buffer, quarantine)


def counted(flags: npt.NDArray[np.uint8]) -> Counters:
    """What rows with these flags add to an actor's counters."""
    ends = flags & (TERMINATED | TRUNCATED) != 0
    return Counters(env_steps=int((flags & BOUNDARY == 0).sum()), rows=flags.size, episodes=int(ends.sum()))


def append(log: ChunkLog, chunk: Chunk, data: bytes | None = None, schema: Schema = SCHEMA) -> None:
    """Store ``chunk``, or ``data`` in its place, under the chunk's id."""
    log.append(chunk.slot, chunk_id(chunk), encode(chunk, schema, RUN) if data is None else data)


def chunk_id(chunk: Chunk) -> ChunkId:
    """The chunk's id in its slot's stream."""
    return ChunkId(chunk.incarnation, chunk.seq)


def spoilt(chunk: Chunk) -> bytes:
    """The chunk's bytes with one flipped: its checksum fails."""
    data = bytearray(encode(chunk, SCHEMA, RUN))
    data[-1] ^= 0x10
    return bytes(data)
