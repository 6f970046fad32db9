"""Chunks as an actor sends them, without an environment or a network behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actors.config import ActorConfig
from replay.chunk import BOUNDARY, FIRST, TERMINATED, Chunk, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkId

LANES, CHUNK_STEPS = ActorConfig().lanes, ActorConfig().chunk_steps
EPISODE = 200
"""Env steps of an episode; each lane is at another place of its own."""
PREPARED = 16
"""Different contents that take turns: making random numbers would cost more than sending them."""


class Feed:
    """Consecutive chunks of one slot, of ``chunk_steps`` time steps of ``lanes`` lanes."""

    def __init__(
        self, schema: Schema, run: str, slot: int = 0, lanes: int = LANES, chunk_steps: int = CHUNK_STEPS
    ) -> None:
        self._schema, self._run = schema, run
        self._rng = np.random.default_rng([slot, 1])
        self._grid = (chunk_steps, lanes)
        self._offset = self._rng.integers(0, EPISODE + 1, lanes)
        self._slot, self._seq, self._counters = slot, 0, Counters()
        self._prepared = [self._random() for _ in range(PREPARED)]

    @property
    def rows(self) -> int:
        """Rows of a chunk."""
        return self._grid[0] * self._grid[1]

    def next(self) -> tuple[ChunkId, bytes]:
        """The next chunk's id and bytes."""
        self._seq += 1
        time_steps = np.arange((self._seq - 1) * self._grid[0], self._seq * self._grid[0])
        place = (time_steps[:, None] + self._offset) % (EPISODE + 1)  # in the episode; the last one is its boundary row
        flags = np.select([place == 0, place == EPISODE - 1, place == EPISODE], [FIRST, TERMINATED, BOUNDARY], 0)
        ends, boundaries = (int(np.count_nonzero(place == at)) for at in (EPISODE - 1, EPISODE))
        self._counters = self._counters.plus(Counters(self.rows - boundaries, self.rows, ends))
        chunk = replace(
            self._prepared[self._seq % PREPARED],
            seq=self._seq,
            counters=self._counters,
            flags=flags.astype(np.uint8),
        )
        return ChunkId(1, self._seq), encode(chunk, self._schema, self._run)

    def _random(self) -> Chunk:
        schema, rng, grid = self._schema, self._rng, self._grid
        bits = rng.integers(0, 256, (*grid, *schema.obs_shape))
        obs = bits / 256 - 0.5 if np.dtype(schema.obs_dtype).kind == "f" else bits
        reward, q_taken, q_max = rng.normal(size=(3, *grid)).astype(np.float32)
        return Chunk(
            slot=self._slot,
            incarnation=1,
            seq=0,
            weight_version=1,
            counters=Counters(),
            obs=obs.astype(schema.obs_dtype),
            action=rng.integers(0, schema.num_actions, grid, dtype=np.int32),
            reward=reward,
            q_taken=q_taken,
            q_max=q_max,
            flags=np.zeros(grid, np.uint8),
        )
