"""Sequences: each row of the assembler's table by hand, then every sampled one against a brute-force recorder, over
random episodes, chunks, losses, restarts, evictions and resumes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from chunk_makers import RUN, FakeActor, append
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_makers import SCHEMA, Expected, SequenceRecorder, recurrent

from replay.buffer import ReplayBuffer
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk, Codec, Counters, Schema, encode
from replay.chunk_log.memory_log import MemoryLog
from replay.core_states import CoreStates
from replay.reader import Reader
from replay.samplers.prioritised import PrioritisedSampler
from replay.samplers.uniform import UniformSampler
from replay.sequence_assembler import SequenceAssembler
from replay.sequences import SequenceMirror, SequenceSpec, mixture
from replay.state import State
from replay.storage import Device, Memmap, Ram, Storage

Array = npt.NDArray[Any]
GAMMA = 0.5
STORAGES: dict[str, Callable[[Path], Storage]] = {
    "ram": lambda _: Ram(),
    "memmap": Memmap,
    "device": lambda _: Device(torch.device("cpu")),
}

# -- by hand: one lane, burn-in 2, 4 trained steps, overlap 1, n = 1


class Lane:
    """One lane whose rows are numbered as they come."""

    def __init__(self, stack: int = 1) -> None:
        self.mirror = SequenceMirror(replace(SCHEMA, stack=stack), 100, SequenceSpec(2, 4, 1, 1))
        self._assembler = SequenceAssembler(self.mirror, 1, GAMMA)
        self._seq = itertools.count(1)

    def chunk(self, *flags: int, follows: bool = True) -> Lane:
        """The next rows, with these flags."""
        grid = (len(flags), 1)
        obs = np.arange(self.mirror.end, self.mirror.end + len(flags), dtype=np.float32).reshape(*grid, 1)
        zeros = np.zeros(grid, np.float32)
        columns = (obs, np.zeros(grid, np.int32), zeros, zeros, zeros, np.array(flags, np.uint8).reshape(grid))
        self._assembler.append(recurrent(Chunk(0, 1, next(self._seq), 1, Counters(), *columns)), follows)
        return self

    @property
    def found(self) -> list[str]:
        """The sequences as the table writes them, in order; the state of each is that before its first row."""
        alive = np.arange(self.mirror.start, self.mirror.end)
        names = alive[self.mirror.sampleable(alive)]
        batch = self.mirror.gather(names)
        texts = []
        for b in range(len(names)):
            rows = np.asarray(batch.obs)[:, b].reshape(self.mirror.spec.steps, -1)[:, -1].astype(int)
            valid, upto = batch.valid[:, b], np.flatnonzero(batch.trained[:, b])[-1] + 1
            cut = self.mirror.spec.burn_in
            parts = ((0, cut), (cut, upto), (upto, len(rows)))
            texts.append(" | ".join(" ".join(map(str, rows[i:j][valid[i:j]].tolist())) for i, j in parts).strip())
        return texts


def test_an_episodes_first_rows_are_trained_without_burn_in() -> None:
    """Row 1: 4 trained rows, and the one that the last of them bootstraps from; not a row sooner."""
    lane = Lane().chunk(FIRST, 0, 0).chunk(0)
    assert lane.found == []
    assert lane.chunk(0).found == ["| 0 1 2 3 | 4"]


def test_the_next_sequence_is_trained_from_where_the_state_is_known() -> None:
    """Row 2: 3 steps on, and row 3 is a chunk's first."""
    assert Lane().chunk(FIRST, 0, 0).chunk(0, 0, 0).chunk(0, 0).found == ["| 0 1 2 3 | 4", "| 3 4 5 6 | 7"]


def test_an_episodes_end_has_what_is_left() -> None:
    """Row 3: rows 6 to 8 are trained, the boundary row is bootstrapped from."""
    lane = Lane().chunk(FIRST, 0, 0).chunk(0, 0, 0).chunk(0, 0, TERMINATED).chunk(BOUNDARY, FIRST)
    assert lane.found == ["| 0 1 2 3 | 4", "| 3 4 5 6 | 7", "| 6 7 8 | 9"]


def test_no_sequence_trains_nothing_further() -> None:
    """Row 4: with row 7 as the boundary row all before it are trained in the sequence from 3."""
    lane = Lane().chunk(FIRST, 0, 0).chunk(0, 0, 0).chunk(TRUNCATED, BOUNDARY, FIRST)
    assert lane.found == ["| 0 1 2 3 | 4", "| 3 4 5 6 | 7"]


def test_a_short_episode_is_one_sequence() -> None:
    """Row 5, twice in one chunk."""
    lane = Lane().chunk(FIRST, TERMINATED, BOUNDARY, FIRST, TRUNCATED, BOUNDARY)
    assert lane.found == ["| 0 1 | 2", "| 3 4 | 5"]
    batch = lane.mirror.gather(np.array([0, 3]))
    assert batch.discounts[2:5].T.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0]]
    assert batch.core_state.tolist() == [[0, 0], [0, 0]]


def test_a_lost_chunk_ends_a_piece_at_its_last_row() -> None:
    """Rows 6 and 7: row 5 is bootstrapped from; what comes after begins with the state that was sent with it."""
    lane = Lane().chunk(FIRST, 0, 0).chunk(0, 0, 0).chunk(0, 0, 0, follows=False).chunk(0, 0)
    assert lane.found == ["| 0 1 2 3 | 4", "| 3 4 | 5", "| 6 7 8 9 | 10"]
    assert lane.mirror.gather(np.array([6])).core_state.tolist() == [[6.5, -6]]


def test_rows_without_their_frames_are_in_no_sequence() -> None:
    """Row 8: of a stack of 4, the first 3 rows after a loss, though row 6 has a state; row 9 has one, too."""
    lane = Lane(stack=4).chunk(FIRST, 0, 0).chunk(0, 0, 0).chunk(0, 0, 0, follows=False).chunk(0, 0, 0).chunk(0, 0)
    assert lane.found == ["| 0 1 2 3 | 4", "| 3 4 | 5", "| 9 10 11 12 | 13"]


def test_burn_in_is_as_long_as_known_states_allow() -> None:
    """Row 9: states are known before rows 0, 1, 4 and 7 of the episode."""
    lane = Lane().chunk(FIRST).chunk(0, 0, 0).chunk(0, 0, 0).chunk(0, 0, 0).chunk(0)
    assert lane.found == ["| 0 1 2 3 | 4", "1 2 | 3 4 5 6 | 7", "4 5 | 6 7 8 9 | 10"]
    assert lane.mirror.gather(np.array([3, 6])).core_state.tolist() == [[1.5, -1], [4.5, -4]]


def test_chunks_beyond_a_sequences_reach_leave_rows_out() -> None:
    """Row 10: of chunks of 9 steps rows 6 to 8 are too far from a known state; a driver refuses such chunks."""
    lane = Lane().chunk(FIRST, *[0] * 8).chunk(*[0] * 9)
    assert lane.found == ["| 0 1 2 3 | 4", "0 1 | 2 3 4 5 | 6", "| 9 10 11 12 | 13", "9 10 | 11 12 13 14 | 15"]


def test_the_priority_by_hand() -> None:
    """0.9 x 4 + 0.1 x (1 + 4) / 2: what is not trained does not count."""
    errors = np.array([[1.0], [-4.0], [100.0]], np.float32)
    np.testing.assert_allclose(mixture(errors, np.array([[True], [True], [False]]), 0.9), [3.85], rtol=1e-6)


# -- against the recorder


class Herd:
    """Two actors, a reader of theirs, a mirror, and the recorder."""

    def __init__(
        self, spec: SequenceSpec, n: int, lanes: int, capacity: int, p_end: float, seed: int, where: Storage, stack: int
    ) -> None:
        self.schema = replace(SCHEMA, stack=stack)
        numbers = itertools.count()
        self.actors = [FakeActor(slot, lanes, seed, p_end, numbers) for slot in range(2)]
        self.log, self.codec = MemoryLog(), Codec(self.schema, RUN)
        self.mirror = SequenceMirror(self.schema, capacity, spec, where, reuse=bool(seed % 2))
        self.sampler = PrioritisedSampler(self.mirror, np.random.default_rng(seed), 1.0, 0.4, 100)
        assembler = SequenceAssembler(self.mirror, n, GAMMA)
        self.buffer = ReplayBuffer(self.mirror, assembler, self.sampler)
        self.reader = Reader(self.log, self.codec, self.buffer)
        self.reader.follow(range(2))
        self.recorder = SequenceRecorder(spec, n, GAMMA, stack)
        self.rows: dict[int, int] = {}  # by its observation's number: the row
        self.sent: list[Chunk] = []
        self._broken = [False, False]
        self._rng = np.random.default_rng(seed)

    def step(self, time_steps: int, fate: str, slot: int) -> None:
        """Sends one chunk that arrives, is lost, arrives spoilt, or is the first of a new incarnation."""
        if fate == "restart":
            self.actors[slot].restart()
        chunk = recurrent(self.actors[slot].chunk(time_steps))
        great = self._rng.random(chunk.reward.shape) < 0.05
        chunk = replace(chunk, reward=np.where(great, np.float32(3e38), chunk.reward))
        self.sent.append(chunk)
        if fate == "spoilt":
            append(self.log, chunk, spoilt_recurrent(chunk, self.schema), self.schema)
        elif fate != "lost":
            append(self.log, chunk, schema=self.schema)
        start = self.mirror.end
        self.reader.poll()
        self._broken[slot] |= fate != "arrives"
        if fate not in ("lost", "spoilt"):
            self.arrived(chunk, self._broken[slot], start)
            self._broken[slot] = False

    def arrived(self, chunk: Chunk, broken: bool, start: int) -> None:
        self.recorder.arrive(chunk, broken)
        names = chunk.obs.swapaxes(0, 1).ravel().astype(int).tolist()  # lane by lane
        self.rows |= dict(zip(names, range(start, start + len(names)), strict=True))

    def alive(self, expected: Expected) -> bool:
        """Whether the mirror has all its rows, and the frames of the first of them."""
        oldest = max(0, expected.first - self.recorder.stack + 1)
        return self.rows[expected.piece.rows[oldest].name] >= self.mirror.start

    def check(self) -> int:
        """Compares all that can be sampled with the recorder, exactly; returns how many sequences that is."""
        expected = {each.name: each for each in self.recorder.sequences() if self.alive(each)}
        priorities = {name: self.recorder.priority(each) for name, each in expected.items()}
        expected = {name: each for name, each in expected.items() if priorities[name] is not None}
        rows = np.array([self.rows[name] for name in expected], np.int64)
        alive = np.arange(self.mirror.start, self.mirror.end)
        assert sorted(rows.tolist()) == alive[self.mirror.sampleable(alive)].tolist()
        assert len(rows) == self.mirror.sampleable_rows == np.count_nonzero(self.sampler._tree.weights)
        if not expected:
            return 0
        batch = self.mirror.gather(rows)
        assert batch.trained.sum() == self.mirror.trained_steps == self.mirror.steps_of(rows)
        host = batch.map(np.asarray)
        for b, each in enumerate(expected.values()):
            self.recorder.check(each, host, b)
        weights = self.sampler._tree.weights[rows % self.mirror.capacity_rows]
        wanted = np.array([priorities[name] for name in expected], np.float64)
        np.testing.assert_allclose(weights, wanted, rtol=1e-4, atol=2e-6)
        return len(rows)

    def check_coverage(self) -> None:
        """Every row with a state at or before it, in an episode that is over, is trained on in some sequence."""
        trained: dict[int, set[int]] = {}
        for each in self.recorder.sequences():
            trained.setdefault(id(each.piece), set()).update(range(each.at, each.upto))
        for piece in self.recorder.pieces:
            if piece.ended and piece.known:
                assert trained.get(id(piece), set()) == set(range(piece.known[0], len(piece.rows) - 1))


def spoilt_recurrent(chunk: Chunk, schema: Schema) -> bytes:
    data = bytearray(encode(chunk, schema, RUN))
    data[-1] ^= 0x10
    return bytes(data)


FATES = st.sampled_from(["arrives"] * 8 + ["lost", "spoilt", "restart"])


@st.composite
def specs(draw: st.DrawFn) -> tuple[SequenceSpec, int, int]:
    """A spec, n, and the longest chunk that it goes with."""
    trained = draw(st.integers(1, 6))
    burn_in, overlap = draw(st.integers(0, trained)), draw(st.integers(0, trained - 1))
    n = draw(st.integers(1, 4))
    return SequenceSpec(burn_in, trained, overlap, n + draw(st.integers(0, 2))), n, burn_in + trained - overlap


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    shape=specs(),
    lanes=st.integers(1, 3),
    capacity=st.integers(30, 150),
    p_end=st.sampled_from([0.02, 0.1, 0.4]),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["ram", "device"]),
    stack=st.integers(1, 3),
    steps=st.lists(st.tuples(st.integers(1, 12), FATES, st.integers(0, 1)), min_size=5, max_size=25),
)
def test_every_sequence_is_the_recorders(
    shape: tuple[SequenceSpec, int, int],
    lanes: int,
    capacity: int,
    p_end: float,
    seed: int,
    kind: str,
    stack: int,
    steps: list[tuple[int, str, int]],
) -> None:
    """And there are no more and no fewer, as rows come, are lost and are evicted."""
    spec, n, longest = shape
    herd = Herd(spec, n, lanes, capacity, p_end, seed, STORAGES[kind](Path()), stack)
    for count, fate, slot in steps:
        herd.step(min(count, longest), fate, slot)
        if count == 5:
            herd.check()
    herd.check()
    herd.check_coverage()


def herd_of(kind: str, tmp_path: Path, seed: int = 1, stack: int = 1) -> Herd:
    """One that has sent 60 chunks, some of them lost, into a ring that has turned over."""
    herd = Herd(SequenceSpec(2, 6, 2, 3), 2, 2, 260, 0.05, seed, STORAGES[kind](tmp_path), stack)
    for number in range(60):
        herd.step(5, {17: "lost", 31: "restart", 44: "spoilt"}.get(number, "arrives"), number % 2)
    return herd


@pytest.mark.parametrize("kind", STORAGES)
def test_every_storage_gives_the_recorders_sequences(kind: str, tmp_path: Path) -> None:
    herd = herd_of(kind, tmp_path, seed=2, stack=2)
    assert herd.check() > 20
    batch = herd.mirror.gather(herd.sampler.sample(4, 2, 0).rows)
    assert isinstance(batch.obs, torch.Tensor) == (kind == "device")
    assert all(isinstance(each, np.ndarray) for each in (batch.trained, batch.valid))
    part = batch.part(slice(4, 8))
    assert np.asarray(part.obs).shape == (11, 4, 2, 1)
    np.testing.assert_array_equal(np.asarray(part.masks), np.asarray(batch.masks)[:, 4:8])
    np.testing.assert_array_equal(np.asarray(part.core_state), np.asarray(batch.core_state)[4:8])


def test_a_refill_cuts_what_the_log_still_has(tmp_path: Path) -> None:
    """A learner without its rows: sequences of the chunks that are there, each with the state that was sent with it;
    and what comes next goes on after them."""
    one, other = herd_of("ram", tmp_path), Herd(SequenceSpec(2, 6, 2, 3), 2, 2, 260, 0.05, 1, Ram(), 1)
    other.log = one.log
    other.reader = Reader(one.log, other.codec, other.buffer)
    other.reader.restore(one.reader.state())
    other.buffer.restore(one.buffer.state(with_rows=False), lambda stored: other.reader.refill(one.log, stored))
    sent = {(chunk.slot, chunk.incarnation, chunk.seq): chunk for chunk in one.sent}
    newest: dict[int, tuple[int, ...]] = {}
    for span in other.buffer._stored:
        follows = newest.get(span.slot) == (span.id.incarnation, span.id.seq - 1)
        other.arrived(sent[span.slot, *span.id], not follows, span.start)
        newest[span.slot] = tuple(span.id)
    check_content(other)
    other.actors = one.actors
    for number in range(20):
        other.step(5, "arrives", number % 2)
    check_content(other)


def check_content(herd: Herd) -> None:
    """As ``Herd.check``, but for the priorities, of which the learner's are kept."""
    expected = {herd.rows[each.name]: each for each in herd.recorder.sequences() if herd.alive(each)}
    alive = np.arange(herd.mirror.start, herd.mirror.end)
    rows = alive[herd.mirror.sampleable(alive)]
    assert rows.tolist() == sorted(row for row, each in expected.items() if herd.recorder.priority(each) is not None)
    assert len(rows) > 10
    batch = herd.mirror.gather(rows)
    for b, row in enumerate(rows.tolist()):
        herd.recorder.check(expected[row], batch, b)


def test_sequences_are_drawn_uniformly(tmp_path: Path) -> None:
    """Though one row in some names one: each is drawn about as often, and nothing else is."""
    herd = herd_of("ram", tmp_path)
    alive = np.arange(herd.mirror.start, herd.mirror.end)
    names = alive[herd.mirror.sampleable(alive)]
    drawn = UniformSampler(herd.mirror, np.random.default_rng(0)).sample(100, len(names)).rows
    found, counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == names.tolist()
    assert counts.min() > 60
    assert counts.max() < 150


def test_states_are_found_by_row_as_they_come_and_go() -> None:
    """Also where the arrays grow, and where most of what they hold has gone."""
    states, kept = CoreStates(2), dict[int, list[float]]()
    for start in range(0, 3000, 10):
        rows = np.arange(start, start + 3)
        values = np.stack((rows + 0.5, -rows), 1).astype(np.float32)
        states.add(rows, values)
        kept |= dict(zip(rows.tolist(), values.tolist(), strict=True))
        upto = start - 70 if start < 2000 else start - 700
        states.evict(upto)
        kept = {row: value for row, value in kept.items() if row >= upto}
    asked = np.arange(2000, 3010)
    assert states.before(asked).tolist() == [kept.get(row, [0.0, 0.0]) for row in asked.tolist()]
    assert len(states._rows) < 4 * len(kept)
    again = CoreStates(2)
    again.restore(State({}, states.columns()), 3000)
    np.testing.assert_array_equal(again.before(asked), states.before(asked))
