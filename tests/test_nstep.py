"""n-step windows: hand-worked numbers for each row of the docstring's table, then a naive oracle over many episodes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from chunk_makers import CODEC, SCHEMA, FakeActor, append, chunk_id, reader_on, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import td
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkLog
from replay.mirror import Mirror
from replay.nstep import LaneWindows, NewTransitions, signed_hyperbolic, signed_parabolic

GAMMA = 0.5
REWARDS = [1.0, 2.0, 4.0, 8.0, 16.0]
LEARNT = settings(max_examples=150, derandomize=True, deadline=None)


# Hand-worked: one lane, n = 3, gamma = 0.5. A row i is written (r_t, discount_t, row of s_t).


def windows_of(
    flags: list[int], n: int = 3, gamma: float = GAMMA, broken: bool = False
) -> dict[int, tuple[float, ...]]:
    """What one lane with ``flags`` and the first of ``REWARDS`` yields, by row."""
    windows = LaneWindows(1, n, gamma)
    count = len(flags)
    column = (count, 1)
    found = [
        windows.extend(
            np.array(REWARDS[:count], np.float32).reshape(column),
            np.array(flags, np.uint8).reshape(column),
            np.arange(count).reshape(column),
            np.zeros(column, np.float32),
            np.zeros(column, np.float32),
        )
    ]
    if broken:
        found.append(windows.break_lanes())
    return as_dict(found)


def as_dict(found: list[NewTransitions]) -> dict[int, tuple[float, ...]]:
    """By row; a row that was yielded twice fails."""
    rows: dict[int, tuple[float, ...]] = {}
    for closed in found:
        for row, r_t, discount_t, boot, _ in zip(*(column.tolist() for column in closed), strict=True):
            assert row not in rows, f"row {row} was yielded twice"
            rows[row] = (r_t, discount_t, boot)
    return rows


def test_n_rows_without_an_end_bootstrap_from_the_nth() -> None:
    """Table row 1: 1 + 2/2 + 4/4 = 3 and 2 + 4/2 + 8/4 = 6 with gamma^3; rows 2..4 stay open."""
    assert windows_of([FIRST, 0, 0, 0, 0]) == {0: (3.0, 0.125, 3), 1: (6.0, 0.125, 4)}


def test_termination_stops_the_window_and_has_no_discount() -> None:
    """Table row 2, with all tails (ray#2929): 1 + 2/2 + 4/4, 2 + 4/2, 4, each with discount 0."""
    rows = windows_of([FIRST, 0, TERMINATED, BOUNDARY, FIRST])
    assert rows == {0: (3.0, 0.0, 3), 1: (4.0, 0.0, 3), 2: (4.0, 0.0, 3)}


def test_truncation_stops_the_window_and_keeps_the_tails_own_gamma() -> None:
    """Table row 3 (SB3#284, ray#4626): tails of 3, 2, 1 rewards have gamma^3, gamma^2, gamma^1, not gamma^n."""
    rows = windows_of([FIRST, 0, TRUNCATED, BOUNDARY, FIRST])
    assert rows == {0: (3.0, 0.125, 3), 1: (4.0, 0.25, 3), 2: (4.0, 0.5, 3)}


def test_terminated_wins_over_truncated() -> None:
    """TimeLimit may say both at once: nothing is bootstrapped then."""
    assert windows_of([FIRST | TERMINATED | TRUNCATED, BOUNDARY]) == {0: (1.0, 0.0, 1)}


def test_window_does_not_cross_a_truncation() -> None:
    """CleanRL's Rainbow crossed it: row 0 must see one reward, row 2 begins anew behind the boundary row."""
    rows = windows_of([FIRST | TRUNCATED, BOUNDARY, FIRST, TRUNCATED, BOUNDARY])
    assert rows == {0: (1.0, 0.5, 1), 2: (8.0, 0.25, 4), 3: (8.0, 0.5, 4)}


def test_termination_behind_the_window_does_not_touch_it() -> None:
    """Row 0 bootstraps from row 3 although row 3 terminates; rows 1..3 see the end."""
    rows = windows_of([FIRST, 0, 0, TERMINATED, BOUNDARY])
    assert rows == {0: (3.0, 0.125, 3), 1: (6.0, 0.0, 4), 2: (8.0, 0.0, 4), 3: (8.0, 0.0, 4)}


def test_too_few_rows_yield_nothing_yet() -> None:
    """Table row 4: an open window is absent, never wrong."""
    assert windows_of([FIRST, 0, 0]) == {}


def test_broken_lane_ends_at_its_last_row_without_its_reward() -> None:
    """Table row 5: row 2 serves as the boundary row, so 1 + 2/2 with gamma^2 and 2 with gamma; row 2 yields nothing."""
    assert windows_of([FIRST, 0, 0], broken=True) == {0: (2.0, 0.25, 2), 1: (2.0, 0.5, 2)}


def test_lane_broken_on_a_terminated_row_loses_that_row_only() -> None:
    """The terminated row's own step is unknown to the rows before it: they bootstrap from its observation."""
    assert windows_of([FIRST, TERMINATED], broken=True) == {0: (1.0, 0.5, 1)}


def test_lane_broken_behind_a_boundary_row_yields_nothing_more() -> None:
    """What was closed stays as it was."""
    rows = windows_of([FIRST, TERMINATED, BOUNDARY], broken=True)
    assert rows == {0: (2.0, 0.0, 2), 1: (2.0, 0.0, 2)}


def test_a_return_that_float32_cannot_hold_is_never_yielded() -> None:
    """Each reward passes the codec; their sum is not finite, and would poison the learner. Its neighbours stay."""
    windows = LaneWindows(1, 2, 1.0)
    reward = np.array([1.0, 3e38, 3e38, 2.0, 4.0], np.float32).reshape(5, 1)
    zeros = np.zeros((5, 1), np.float32)
    found = windows.extend(reward, np.zeros((5, 1), np.uint8), np.arange(5).reshape(5, 1), zeros, zeros)
    assert found.row.tolist() == [0, 2]
    assert np.isfinite(found.r_t).all()


def test_td_errors_of_rescaled_values_by_hand() -> None:
    """One step, gamma 1: q_max 1.003 is h(3), so the target is h(1 + 3) and the TD error that less q_taken."""
    windows = LaneWindows(1, 1, 1.0, value_rescale=True)
    column = np.zeros((2, 1), np.float32)
    q_taken, q_max, reward = column + 0.5, column + 1.003, column + 1
    closed = windows.extend(reward, np.array([[FIRST], [0]], np.uint8), np.arange(2)[:, None], q_taken, q_max)
    np.testing.assert_allclose(closed.td_error, [5**0.5 - 1 + 0.004 - 0.5], rtol=1e-4)
    np.testing.assert_allclose(closed.r_t, [1.0])


def test_both_functions_of_rescaled_values_are_the_learners() -> None:
    x = np.concatenate([-np.logspace(-4, 6, 50), [0.0], np.logspace(-4, 6, 50)])
    for mine, learners in ((signed_hyperbolic, td.signed_hyperbolic), (signed_parabolic, td.signed_parabolic)):
        np.testing.assert_allclose(mine(x), learners(torch.from_numpy(x)).numpy(), rtol=1e-5)
        np.testing.assert_allclose(mine(x.astype(np.float32)), mine(x), rtol=1e-6)


def test_nothing_carries_over_a_break() -> None:
    """The rows behind a break are another story: no window reaches them, none is yielded again."""
    windows = LaneWindows(1, 2, GAMMA)
    one = np.ones((1, 1), np.float32)
    found = []
    for row in range(4):
        found.append(windows.extend(one, np.zeros((1, 1), np.uint8), np.full((1, 1), row), one, one))
        if row == 1:
            found.append(windows.break_lanes())
    found.append(windows.break_lanes())
    assert as_dict(found) == {0: (1.0, 0.5, 1), 2: (1.0, 0.5, 3)}


@pytest.mark.parametrize("n", [1, 2])
def test_one_step_and_two_step(n: int) -> None:
    """n = 1 is the textbook's transition."""
    expected = {
        1: {0: (1.0, 0.5, 1), 1: (2.0, 0.5, 2), 2: (4.0, 0.0, 3)},
        2: {0: (2.0, 0.25, 2), 1: (4.0, 0.0, 3), 2: (4.0, 0.0, 3)},
    }
    assert windows_of([FIRST, 0, TERMINATED, BOUNDARY], n=n) == expected[n]


# The oracle: one transition at a time, from whole episodes.


class Row(NamedTuple):
    """One row of one lane; ``obs`` names it."""

    obs: int
    action: int
    reward: float
    flags: int


class Transition(NamedTuple):
    """What the learner should see of a row."""

    a_tm1: int
    r_t: float
    discount_t: float
    s_t: int


def oracle(lane: list[Row], n: int, gamma: float) -> dict[int, Transition]:
    """The transitions of an unbroken stretch of a lane, by the observation that each starts from."""
    found: dict[int, Transition] = {}
    episode: list[Row] = []
    for row in lane:
        if row.flags & BOUNDARY:
            found.update(of_episode(episode, row.obs, n, gamma))
            episode = []
        else:
            episode.append(row)
    found.update(of_episode(episode, None, n, gamma))
    return found


def of_episode(steps: list[Row], last_obs: int | None, n: int, gamma: float) -> dict[int, Transition]:
    """``last_obs`` is None while the episode goes on."""
    found = {}
    for t, step in enumerate(steps):
        taken = steps[t : t + n]
        after = t + len(taken)
        if after < len(steps):
            s_t, discount = steps[after].obs, gamma**n
        elif last_obs is None:
            continue
        else:
            s_t, discount = last_obs, 0.0 if steps[-1].flags & TERMINATED else gamma ** len(taken)
        r_t = sum(gamma**k * row.reward for k, row in enumerate(taken))
        found[step.obs] = Transition(step.action, r_t, discount, s_t)
    return found


def lane_rows(chunk: Chunk, lane: int) -> list[Row]:
    """The rows of one lane of a chunk."""
    columns = (chunk.obs[:, lane, 0], chunk.action[:, lane], chunk.reward[:, lane], chunk.flags[:, lane])
    return [Row(int(obs), *rest) for obs, *rest in zip(*(column.tolist() for column in columns), strict=True)]


def ended(lane: list[Row]) -> list[Row]:
    """The stretch with its last row as its boundary row, as a break leaves it."""
    return [*lane[:-1], lane[-1]._replace(flags=BOUNDARY)] if lane else []


def assert_same(actual: dict[int, Transition], expected: dict[int, Transition]) -> None:
    """Same rows, same actions and bootstrap rows; returns and discounts within float32's rounding."""
    assert actual.keys() == expected.keys()
    for obs, transition in expected.items():
        assert (actual[obs].a_tm1, actual[obs].s_t) == (transition.a_tm1, transition.s_t)
        assert actual[obs].r_t == pytest.approx(transition.r_t, rel=1e-5, abs=1e-5)
        assert actual[obs].discount_t == pytest.approx(transition.discount_t, rel=1e-6, abs=0)


@LEARNT
@given(
    n=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    lanes=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    p_end=st.sampled_from([0.0, 0.1, 0.4, 0.9]),
    seed=st.integers(0, 1 << 16),
)
def test_windows_equal_the_oracle_for_any_cut_into_chunks(
    n: int, gamma: float, lanes: int, sizes: list[int], p_end: float, seed: int
) -> None:
    """Every transition exactly once, whatever the chunk sizes: windows across chunk edges are exact, tails are kept."""
    actor = FakeActor(lanes=lanes, seed=seed, p_end=p_end)
    windows = LaneWindows(lanes, n, gamma)
    lane_history: list[list[Row]] = [[] for _ in range(lanes)]
    action_of: dict[int, int] = {}
    found = []
    for size in sizes:
        chunk = actor.chunk(size)
        for lane in range(lanes):
            lane_history[lane] += lane_rows(chunk, lane)
        action_of.update(zip(chunk.obs.ravel().astype(int).tolist(), chunk.action.ravel().tolist(), strict=True))
        row = chunk.obs[..., 0].astype(np.int64)
        found.append(windows.extend(chunk.reward, chunk.flags, row, chunk.q_taken, chunk.q_max))

    def yielded() -> dict[int, Transition]:
        return {obs: Transition(action_of[obs], r, d, int(boot)) for obs, (r, d, boot) in as_dict(found).items()}

    def expected() -> dict[int, Transition]:
        return {obs: t for history in lane_history for obs, t in oracle(history, n, gamma).items()}

    assert_same(yielded(), expected())
    found.append(windows.break_lanes())
    lane_history = [ended(history) for history in lane_history]
    assert_same(yielded(), expected())


class Herd:
    """Two actors, a log, reader and mirror; and beside them, the plain lists that the oracle reads."""

    def __init__(self, n: int, gamma: float, lanes: int, capacity: int, p_end: float, seed: int) -> None:
        numbers = itertools.count()
        self._n, self._gamma, self._capacity = n, gamma, capacity
        self.actors = [FakeActor(slot, lanes, seed, p_end, numbers) for slot in range(2)]
        self.log: ChunkLog = MemoryLog()
        self.mirror = Mirror(SCHEMA, capacity)
        self.reader = reader_on(self.log, CODEC, self.mirror, n, gamma)
        self.reader.follow(range(2))
        self._closed: list[list[Row]] = []
        self._open = {(slot, lane): list[Row]() for slot in range(2) for lane in range(lanes)}
        self._broken = [False, False]
        self._arrived: list[int] = []

    def step(self, slot: int, time_steps: int, fate: str) -> None:
        """Send one chunk that arrives, is lost, arrives spoilt, or is the first of a new incarnation."""
        actor = self.actors[slot]
        if fate == "restart":
            actor.restart()
        chunk = actor.chunk(time_steps)
        if fate == "spoilt":
            append(self.log, chunk, spoilt(chunk))
        elif fate != "lost":
            append(self.log, chunk)
        self.reader.poll()
        self._broken[slot] |= fate != "arrives"
        if fate not in ("lost", "spoilt"):
            self._arrive(chunk)

    def _arrive(self, chunk: Chunk) -> None:
        for lane in range(chunk.flags.shape[1]):
            key = (chunk.slot, lane)
            if self._broken[chunk.slot]:
                self._closed.append(ended(self._open[key]))
                self._open[key] = []
            self._open[key] += lane_rows(chunk, lane)
        self._broken[chunk.slot] = False
        self._arrived += chunk.obs.ravel().astype(int).tolist()

    def expected(self) -> dict[int, Transition]:
        """The oracle's transitions whose row is among the newest ``capacity``."""
        alive = set(self._arrived[-self._capacity :])
        lanes = [*self._closed, *self._open.values()]
        found = [oracle(lane, self._n, self._gamma) for lane in lanes]
        return {obs: t for transitions in found for obs, t in transitions.items() if obs in alive}

    def actual(self) -> dict[int, Transition]:
        """All that the mirror would let a sampler see."""
        ids: npt.NDArray[np.int64] = np.arange(self.mirror.start, self.mirror.end)
        ids = ids[self.mirror.sampleable(ids)]
        assert len(ids) == self.mirror.sampleable_rows
        s_tm1, *rest, s_t = self.mirror.gather(ids)
        names = s_tm1[:, 0].astype(int).tolist()
        columns = [*(column.tolist() for column in rest), s_t[:, 0].astype(int).tolist()]
        return {name: Transition(*columns) for name, *columns in zip(names, *columns, strict=True)}


FATES = ["arrives"] * 7 + ["lost", "spoilt", "restart"]


@LEARNT
@given(
    n=st.integers(1, 6),
    gamma=st.sampled_from([0.5, 0.97, 1.0]),
    lanes=st.integers(1, 3),
    capacity=st.integers(15, 70),
    p_end=st.sampled_from([0.05, 0.3, 0.9]),
    seed=st.integers(0, 1 << 16),
    steps=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5), st.sampled_from(FATES)), min_size=1, max_size=16),
)
def test_samples_equal_the_oracle_through_reader_mirror_and_gather(
    n: int, gamma: float, lanes: int, capacity: int, p_end: float, seed: int, steps: list[tuple[int, int, str]]
) -> None:
    """After every chunk, all that can be sampled is the oracle's: across chunk edges, breaks, the seam and eviction."""
    herd = Herd(n, gamma, lanes, capacity, p_end, seed)
    for slot, time_steps, fate in steps:
        herd.step(slot, time_steps, fate)
        assert_same(herd.actual(), herd.expected())


def test_long_run_wraps_the_ring_often_and_stays_equal_to_the_oracle() -> None:
    """Many turns of a small ring whose size no chunk divides: row ids outlive their places."""
    herd = Herd(n=3, gamma=0.97, lanes=2, capacity=37, p_end=0.1, seed=5)
    for step in range(150):
        herd.step(step % 2, 1 + step % 4, "arrives")
        assert_same(herd.actual(), herd.expected())
    assert herd.mirror.end > 15 * 37
    assert chunk_id(herd.actors[0].chunk()).seq == 76


PLAIN_FLAGS = [0, FIRST, TERMINATED, TRUNCATED, FIRST | TERMINATED, BOUNDARY, BOUNDARY | FIRST]


def never(stored: Any) -> Any:
    """In place of a refill, where the state has the rows."""
    raise AssertionError("rows that are there were read again")


def follows(before: int, after: int) -> bool:
    """Whether a row with the flags ``after`` may come after one with ``before``."""
    if bool(before & BOUNDARY) != bool(after & FIRST):
        return False
    return not before & (TERMINATED | TRUNCATED) or bool(after & BOUNDARY)


@LEARNT
@given(
    n=st.integers(1, 4),
    lanes=st.integers(1, 2),
    chunks=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.0, 0.2])), min_size=1, max_size=12),
    resumed=st.integers(0, 12),
    seed=st.integers(0, 1 << 16),
)
def test_what_breaks_the_order_of_rows_is_refused_and_counted(
    n: int, lanes: int, chunks: list[tuple[int, float]], resumed: int, seed: int
) -> None:
    """Flags of any order, within chunks and across them, also across a resume between two: what cannot follow is
    refused, and all that can be sampled is the oracle's."""
    rng, actor = np.random.default_rng(seed), FakeActor(lanes=lanes, seed=seed, p_end=0.4)
    herd = Herd(n, 0.9, lanes, 1000, 0.0, 0)
    newest: npt.NDArray[np.uint8] | None = None  # the flags of the rows that the next chunk's rows have to follow
    refused = lost = 0
    for index, (time_steps, p_wrong) in enumerate(chunks):
        if index == resumed:
            state, parts = herd.reader.state(), herd.reader.buffer.state(with_rows=True)
            herd.mirror = Mirror(SCHEMA, 1000)
            herd.reader = reader_on(herd.log, CODEC, herd.mirror, n, 0.9)
            herd.reader.restore(state)
            herd.reader.buffer.restore(parts, never)
        chunk = actor.chunk(time_steps)
        wrong = rng.random(chunk.flags.shape) < p_wrong
        flags = np.where(wrong, rng.choice(PLAIN_FLAGS, chunk.flags.shape), chunk.flags).astype(np.uint8)
        chunk = actor.reflagged(chunk, flags)
        append(herd.log, chunk)
        herd.reader.poll()
        herd.reader.ledger.check()
        rows = flags if newest is None else np.concatenate((newest[None], flags))
        good = all(follows(*pair) for lane in rows.T.tolist() for pair in itertools.pairwise(lane))
        newest = flags[-1] if good else None
        herd._broken[0] |= not good
        if good:
            herd._arrive(chunk)
            lost = chunk.counters.rows - len(herd._arrived)
        refused += not good
        assert herd.reader.ledger.totals.refused == ({"flags": refused} if refused else {})
        assert herd.reader.ledger.totals.rows_lost == ({"refused": lost} if lost else {})
        assert_same(herd.actual(), herd.expected())


@pytest.mark.parametrize("after", PLAIN_FLAGS)
@pytest.mark.parametrize("before", PLAIN_FLAGS)
def test_a_chunk_has_to_follow_the_one_before(before: int, after: int) -> None:
    """In one lane of two, a row in each chunk; after a lost chunk anything may come."""
    for lost in (False, True):
        herd, actor = Herd(1, 0.9, 2, 100, 0.0, 0), FakeActor(lanes=2, p_end=0.0)
        for index, flags in enumerate((before, after)):
            append(herd.log, actor.reflagged(actor.chunk(1), np.array([[0 if index else FIRST, flags]], np.uint8)))
            if lost and not index:
                actor.chunk(1)
        herd.reader.poll()
        taken, totals = lost or follows(before, after), herd.reader.ledger.totals
        assert (totals.chunks, totals.refused["flags"]) == ((2, 0) if taken else (1, 1))


def test_a_refill_does_not_take_what_was_refused() -> None:
    """Neither for its order, which the chunk alone does not show, nor for its counters."""
    herd, actor = Herd(2, 0.9, 1, 100, 0.0, 0), FakeActor(p_end=0.0)
    for index in range(6):
        chunk = actor.chunk(3)
        if index == 2:
            chunk = replace(chunk, flags=np.array([[FIRST], [0], [0]], np.uint8))
        if index == 4:
            chunk = replace(chunk, counters=chunk.counters._replace(rows=1))
        append(herd.log, chunk)
    herd.reader.poll()
    assert herd.reader.ledger.totals.refused == {"flags": 1, "counters": 1}
    before = herd.actual()
    state, parts = herd.reader.state(), herd.reader.buffer.state(with_rows=False)
    herd.mirror = Mirror(SCHEMA, 100)
    reader = reader_on(herd.log, CODEC, herd.mirror, 2, 0.9)
    reader.restore(state)
    reader.buffer.restore(parts, lambda stored: reader.refill(herd.log, stored))
    assert herd.mirror.rows == 12
    assert_same(herd.actual(), before)
