"""Sampling sequences for recurrent learning, beside a naive gather of each sequence and TorchRL's SliceSampler.

``python -m benchmarks --only sequences``. All sides choose 64 sequences of 80 steps and put observations, actions,
rewards and discounts together: ours by their priorities, as the preset r2d2 does, and as many batches in one call as
the learner takes, the others uniformly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.feed import EPISODE, Feed
from benchmarks.peers import Peer, medians, seconds_of
from benchmarks.replay import in_turn
from benchmarks.result import Result
from learner.config import GATHER_BYTES
from replay.buffer import ReplayBuffer
from replay.chunk import Codec, Schema
from replay.config import ReplayConfig
from replay.samplers.prioritised import PrioritisedSampler
from replay.sequence_assembler import SequenceAssembler
from replay.sequences import SequenceMirror, SequenceSpec

RUN = "sequences"
BATCH, LANES, CHUNK_STEPS = 64, 16, 40
SPEC = SequenceSpec(burn_in=20, trained=55, overlap=15, bootstrap=5)
QUICK_ROWS = 4_000
NAIVE_TARGET, PEER_TARGET = 3.0, 1.0
SCHEMAS = {
    "84x84 frames": (Schema((84, 84), "uint8", 4), 60_000),
    "8 floats": (Schema((8,), "float32", 4), 200_000),
}
"""Observations, and the rows that the memory has."""


def measure(quick: bool) -> list[Result]:
    """Sides in one process each, which take turns; medians of ``times`` calls, then of the repetitions."""
    results: list[Result] = []
    for name, (schema, rows) in SCHEMAS.items():
        memory = Memory(schema, QUICK_ROWS if quick else rows)
        setting = {
            "sequence_rows": memory.mirror.capacity_rows,
            "shape": schema.obs_shape,
            "dtype": schema.obs_dtype,
            "batch": BATCH,
            "steps": SPEC.steps,
            "episode": EPISODE,
        }
        with Peer("torchrl", **setting) as torchrl:
            results += _results(name, memory, torchrl, *((3, 2) if quick else (60, 7)))
    return results


def _results(name: str, memory: Memory, torchrl: Peer, times: int, repetitions: int) -> list[Result]:
    calls = [
        lambda: medians(memory.ours, times),
        lambda: medians(memory.naive, times),
        lambda: torchrl.seconds("slices", times),
    ]
    turns = [in_turn(calls, first % len(calls)) for first in range(repetitions)]
    ours, naive, peers = (tuple(BATCH * SPEC.steps / turn[side][0] for turn in turns) for side in range(len(calls)))
    what, note = f"sequences of {name}", f"{BATCH} x {SPEC.steps} steps out of {memory.mirror.capacity_rows:,} rows"
    note += f", {memory.together} of ours together"
    each = "an index and a gather for each sequence, then a stack"
    return [
        Result(what, "steps/s", ours, each, naive, NAIVE_TARGET, notes=(note,)),
        Result(what, "steps/s", ours, torchrl.about, peers, PEER_TARGET, notes=(note,)),
    ]


class Memory:
    """A full mirror of sequences, and the same columns for the naive gather."""

    def __init__(self, schema: Schema, rows: int) -> None:
        rng = np.random.default_rng(0)
        self.mirror = SequenceMirror(schema, rows, SPEC, reuse=True)
        sampler = PrioritisedSampler(self.mirror, rng, alpha=0.9, beta=0.6, beta_updates=100_000)
        self._buffer = ReplayBuffer(self.mirror, SequenceAssembler(self.mirror, SPEC.bootstrap, 0.997), sampler)
        feed, codec = Feed(schema, RUN, lanes=LANES, chunk_steps=CHUNK_STEPS), Codec(schema, RUN)
        while self.mirror.start == 0:
            chunk_id, data = feed.next()
            self._buffer.append(codec.decode(data, 0, *chunk_id), follows=True)
        alive = np.arange(self.mirror.start, self.mirror.end)
        names = alive[self.mirror.sampleable(alive)]
        self.together = max(
            1, min(ReplayConfig().ingest_every_updates, GATHER_BYTES // (BATCH * self.mirror.sample_bytes))
        )
        self._rng, laid = rng, self.mirror._lay_out(self.mirror._named(names)).at
        self._rows = [np.ascontiguousarray(laid[:, b]) for b in range(laid.shape[1])]
        stored = self.mirror._columns
        self._columns = stored["obs"], stored["action"], self.mirror._reward, self.mirror._discount

    def ours(self) -> tuple[float]:
        """Seconds of one batch of those that are sampled together."""
        return (seconds_of(lambda: self._buffer.sample(BATCH, self.together))[0] / self.together,)

    def naive(self) -> tuple[float]:
        """Seconds of choosing as many, and of gathering them one by one."""
        return (seconds_of(self._gather_each)[0],)

    def _gather_each(self) -> list[Any]:
        parts: list[list[Any]] = [[] for _ in self._columns]
        for chosen in self._rng.integers(0, len(self._rows), BATCH):
            rows = self._rows[chosen]
            for part, column in zip(parts, self._columns, strict=True):
                part.append(column[rows])
        return [np.stack(part, axis=1) for part in parts]
