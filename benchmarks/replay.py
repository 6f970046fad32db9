"""The replay memory: sampling and ingest beside cpprb and TorchRL, the log beside Redis itself, and where it stops.

``python -m benchmarks --only replay``. The parts through a server are in replay_log.py and replay_clients.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import replay_clients, replay_log
from benchmarks.feed import Feed
from benchmarks.peers import Peer, Timed, medians, seconds_of
from benchmarks.result import Result
from learner.config import LearnerConfig
from replay.assembler import NStepAssembler
from replay.buffer import ReplayBuffer
from replay.chunk import Codec, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.config import ReplayConfig
from replay.mirror import Mirror
from replay.reader import Reader
from replay.samplers.prioritised import PrioritisedSampler
from replay.samplers.uniform import UniformSampler

RUN = "replay"
ROWS, QUICK_ROWS, FLOATS, BATCH = 1_000_000, 20_000, 8, 512
SCHEMA = Schema((FLOATS,), "float32", 4)
SAMPLE_TARGET, UPDATE_TARGET, UNIFORM_TARGET, INGEST_TARGET = 2.0, 1.0, 1.0, 1e6
INGEST_CHUNKS, QUICK_CHUNKS = 200, 10


def measure(quick: bool) -> list[Result]:
    """Sides in one process each, which take turns; medians of ``times`` calls, then of the repetitions."""
    times, repetitions = (3, 2) if quick else (300, 11)
    rows, chunks = (QUICK_ROWS, QUICK_CHUNKS) if quick else (ROWS, INGEST_CHUNKS)
    memory = Memory(rows, chunks)
    setting = {"rows": rows, "floats": FLOATS, "batch": BATCH, "alpha": memory.alpha, "beta": memory.beta}
    with Peer("cpprb", **setting) as cpprb, Peer("torchrl", **setting) as torchrl:

        def sides(what: str, ours: Timed, *peers: Peer) -> list[list[tuple[float, ...]]]:
            """Medians of each part [repetition][side][part]; who begins changes from repetition to repetition."""
            calls = [lambda: medians(ours, times), *(lambda peer=peer: peer.seconds(what, times) for peer in peers)]
            return [in_turn(calls, first % len(calls)) for first in range(repetitions)]

        cycles = sides("prioritised", memory.cycle, cpprb, torchrl)
        draws = sides("uniform", memory.draw, cpprb)
        results = [
            _result("prioritised sample", rows, cycles, 0, 1, cpprb, SAMPLE_TARGET),
            _result("prioritised sample", rows, cycles, 0, 2, torchrl, SAMPLE_TARGET),
            _result("priority update", rows, cycles, 1, 1, cpprb, UPDATE_TARGET),
            _result("priority update", rows, cycles, 1, 2, torchrl, None),
            _result("uniform sample", rows, draws, 0, 1, cpprb, UNIFORM_TARGET),
        ]
    results.append(memory.ingest(repetitions))
    return results + replay_log.measure(quick) + replay_clients.measure(quick)


def in_turn(calls: list[Callable[[], tuple[float, ...]]], first: int) -> list[tuple[float, ...]]:
    """What each call returned, in their order; the one at ``first`` was called first."""
    order = [*range(first, len(calls)), *range(first)]
    found = {index: calls[index]() for index in order}
    return [found[index] for index in range(len(calls))]


def _size(rows: int) -> str:
    return (
        f"{rows:,} transitions of 76 bytes (two observations of 8 floats, action, reward, discount), batches of {BATCH}"
    )


def _result(name: str, rows: int, sides: Any, part: int, other: int, peer: Peer, target: float | None) -> Result:
    rates = [tuple(BATCH / turn[side][part] for turn in sides) for side in (0, other)]
    return Result(f"{name} of {BATCH}", "rows/s", rates[0], peer.about, rates[1], target, notes=(_size(rows),))


class Memory:
    """qherd's side: a mirror full of ``rows`` rows, ingested from a log in blocks of ``chunks``, with a sampler of
    either kind."""

    def __init__(self, rows: int, chunks: int) -> None:
        options = ReplayConfig().prioritised
        self._chunks = chunks
        self.alpha, self.beta = options.alpha, options.beta
        self._rng = np.random.default_rng(0)
        self._log, self._feed = MemoryLog(), Feed(SCHEMA, RUN)
        self._mirror = Mirror(SCHEMA, rows)
        self._sampler = PrioritisedSampler(self._mirror, self._rng, self.alpha, self.beta, options.beta_updates)
        self._uniform = UniformSampler(self._mirror, self._rng)
        learner = LearnerConfig()
        assembler = NStepAssembler(self._mirror, learner.n_step, learner.gamma)
        self._buffer = ReplayBuffer(self._mirror, assembler, self._sampler)
        self._reader = Reader(self._log, Codec(SCHEMA, RUN), self._buffer)
        self._reader.follow([0])
        while self._mirror.rows < rows:
            self._take_in()
        stored = np.arange(self._mirror.start, self._mirror.end)
        self._sampler.update(stored, self._rng.normal(size=rows).astype("f4"))

    def cycle(self) -> tuple[float, float]:
        """Seconds of one prioritised sample (chosen, weighed, gathered) and of one priority update."""
        sample_s, rows = seconds_of(self._sample)
        errors = self._rng.normal(size=BATCH).astype("f4")
        return sample_s, seconds_of(lambda: self._sampler.update(rows, errors))[0]

    def _sample(self) -> Any:
        return self._buffer.sample(BATCH).rows

    def draw(self) -> tuple[float]:
        """Seconds of one uniform sample."""
        return (seconds_of(lambda: self._mirror.gather(self._uniform.sample(BATCH).rows))[0],)

    def ingest(self, repetitions: int) -> Result:
        """Chunks of the default size into the full mirror: checks, n-step windows, eviction and tree included."""
        rows = self._chunks * self._feed.rows
        rates = tuple(rows / self._take_in() for _ in range(repetitions))
        note = f"chunks of {self._feed.rows} rows of {SCHEMA.row_bytes} bytes; {_size(self._mirror.capacity_rows)}"
        return Result("ingest, prioritised", "rows/s", rates, target=INGEST_TARGET, notes=(note,))

    def _take_in(self) -> float:
        """Seconds of the reader alone for a block of chunks."""
        for _ in range(self._chunks):
            self._log.append(0, *self._feed.next())
        seconds, _ = seconds_of(self._reader.drain)
        self._reader.trim(keep_rows=0)
        return seconds
