"""The limiter: the equation by hand, the band that follows from credit, and what earns no samples."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.limiter import Limiter


def make(spi: float = 4.0, min_rows: int = 100, capacity: int = 10_000, batch: int = 32, **fitted: int) -> Limiter:
    """A limiter that is fitted to its actors."""
    limiter = Limiter(samples_per_insert=spi, min_rows=min_rows, capacity_rows=capacity, batch=batch)
    limiter.fit(**{"actors": 2, "chunk_rows": 10, **fitted})
    return limiter


def test_below_min_rows_actors_go_and_the_learner_waits() -> None:
    """Up to and not including min_rows."""
    limiter = make()
    limiter.insert(99, sampleable=True)
    assert (limiter.room_rows > 0, limiter.may_sample) == (True, False)
    limiter.insert(1, sampleable=True)
    assert limiter.may_sample


def test_error_band_and_room_by_hand() -> None:
    """2 actors x 8 chunks x 10 rows are a window of 160; half_band = (4 * 161 + 32) / 2 = 338;
    error = 4 * (inserts - 100) - samples; room = (338 - error) / 4."""
    limiter = make()
    assert (limiter.window_rows, limiter.half_band) == (160, 338)
    assert limiter.room_rows == 100 + 160
    limiter.insert(100, sampleable=True)
    assert (limiter.error, limiter.may_sample, limiter.room_rows) == (0, True, 84)
    limiter.insert(84, sampleable=True)
    assert (limiter.error, limiter.room_rows) == (336, 0)
    limiter.samples = 336 + 306
    assert (limiter.error, limiter.may_sample) == (-306, True)  # one more batch brings it to the lower edge
    limiter.samples += 1
    assert (limiter.error, limiter.may_sample, limiter.room_rows) == (-307, False, 161)


def test_rows_that_come_with_min_rows_fill_the_band_and_no_more() -> None:
    limiter = make()
    limiter.insert(260, sampleable=True)
    assert (limiter.error, limiter.room_rows) == (338, 0)


@pytest.mark.parametrize("spi", [0.3, 1.5, 7.25])
def test_ratio_is_not_rounded(spi: float) -> None:
    """ray#6127: ratios were rounded to integers. Half a sample per insert is half a sample per insert."""
    limiter = make(spi=spi, actors=1, chunk_rows=1)
    for _ in range(20_000):
        if limiter.may_sample:
            limiter.samples += limiter.batch
        else:
            limiter.insert(1, sampleable=True)
    assert limiter.realised == pytest.approx(spi, rel=0.05)


def test_realised_counts_from_min_rows_on() -> None:
    """0 before there is anything to count."""
    limiter = make(min_rows=100)
    assert limiter.realised == 0.0
    limiter.inserts, limiter.samples = 100, 32
    assert limiter.realised == 0.0
    limiter.inserts, limiter.samples = 108, 20
    assert limiter.realised == 2.5


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    spi=st.floats(0.01, 500),
    batch=st.integers(1, 1024),
    actors=st.integers(1, 2000),
    chunk=st.integers(1, 500),
    beyond=st.integers(0, 1 << 20),
    min_rows=st.integers(1, 10_000),
    inserts=st.integers(0, 1 << 32),
    offset=st.floats(-3, 3),
)
def test_one_side_may_always_go(
    spi: float, batch: int, actors: int, chunk: int, beyond: int, min_rows: int, inserts: int, offset: float
) -> None:
    """Where the learner waits there is room for a window, which is at least a chunk; and the rows that may come in
    before it samples never exceed what the replay holds beside min_rows."""
    limiter = Limiter(spi, min_rows, min_rows + int(batch / spi) + 2 + chunk + beyond, batch)
    limiter.fit(actors, chunk)
    limiter.inserts = inserts
    limiter.samples = max(0, int(spi * (inserts - min_rows) - offset * limiter.half_band))
    assert chunk <= limiter.window_rows <= max(chunk, limiter.capacity_rows // 4)
    assert limiter.may_sample or limiter.room_rows >= limiter.window_rows
    assert limiter.room_rows <= limiter.capacity_rows - min(inserts, min_rows)


@pytest.mark.parametrize(
    ("spi", "batch", "chunk", "needed"), [(4.0, 32, 20, 100 + 8 + 20 + 1), (0.1, 32, 20, 100 + 320 + 20 + 1)]
)
def test_a_replay_too_small_for_a_chunk_is_refused(spi: float, batch: int, chunk: int, needed: int) -> None:
    """The bound is exact, and the message says what is needed."""
    assert make(spi=spi, capacity=needed, batch=batch, chunk_rows=chunk).window_rows == chunk
    with pytest.raises(ValueError, match=f"at least {needed} are needed"):
        make(spi=spi, capacity=needed - 1, batch=batch, chunk_rows=chunk)


def test_many_actors_share_a_part_of_the_replay() -> None:
    """1,000 actors with chunks of 256 rows: a quarter of what is beyond min_rows, not 2 million rows."""
    limiter = make(capacity=100_000, min_rows=2_000, actors=1_000, chunk_rows=256)
    assert limiter.window_rows == (100_000 - 2_000 - 8 - 1) // 4


def test_rows_that_cannot_be_sampled_earn_nothing() -> None:
    """However many come in (windows longer than what is there), there is room for a window, and nothing is owed."""
    limiter = make()
    for _ in range(500):
        limiter.insert(min(50, limiter.room_rows), sampleable=False)
        assert limiter.room_rows >= limiter.window_rows
    assert limiter.inserts == 25_000
    limiter.insert(0, sampleable=True)
    owed = 0
    while limiter.may_sample:
        limiter.samples, owed = limiter.samples + limiter.batch, owed + limiter.batch
    assert owed == limiter.batch


def test_after_a_backlog_no_row_is_sampled_twice_as_often() -> None:
    """A backlog of six times the replay that no credit has stopped: uniform sampling, row by row. The rows of the
    backlog are sampled at most 1.5 times as often as intended."""
    limiter = make(spi=8.0, min_rows=50, capacity=1_000, batch=16, actors=1)
    sampled: list[float] = []

    def work(rows: int) -> None:
        for _ in range(rows):
            sampled.append(0.0)
            limiter.insert(1, sampleable=True)

    def learn() -> None:
        while limiter.may_sample:
            alive = range(max(0, len(sampled) - 1_000), len(sampled))
            for row in alive:
                sampled[row] += limiter.batch / len(alive)
            limiter.samples += limiter.batch

    for _ in range(3_000):
        work(1)
        learn()
    steady = sampled[1_500]
    work(6_000)
    began = len(sampled)
    learn()
    for _ in range(1_100):
        work(1)
        learn()
    assert steady == pytest.approx(8.0, rel=0.1)
    assert max(sampled[2_000:began]) <= 1.55 * 8.0


@pytest.mark.parametrize("ratio", [(8.0, 100), (2.0, 100), (4.0, 50), (4.0, 3000), (0.3, 7)])
def test_another_ratio_holds_from_the_resume_on(ratio: tuple[float, int]) -> None:
    """Not for the million samples before, which would stop the actors, or the learner, for as long again."""
    before = Limiter(4.0, 100, 10_000, 8, inserts=1000, samples=3594)
    assert before.error == 6
    after = Limiter(*ratio, 10_000, 8)
    after.restore(before.state())
    rows_until_ready = max(0, ratio[1] - 1000)
    assert after.room_rows > 0 or after.may_sample
    after.inserts += rows_until_ready
    assert after.error == pytest.approx(6)
    after.inserts += 100
    assert after.error == pytest.approx(6 + 100 * ratio[0])


def test_what_another_config_held_is_no_reason_to_refuse_a_resume() -> None:
    """A smaller replay than the old min_rows, or than a batch needed by the old ratio, is resumed with all the same."""
    before = Limiter(0.01, 9_000, 1_000_000, 64, inserts=20_000, samples=64).state()
    after = Limiter(4.0, 100, 2_000, 64)
    after.restore(before)
    assert after.error == pytest.approx(0.01 * 11_000 - 64)


def test_the_same_ratio_goes_on_to_the_bit() -> None:
    before = Limiter(0.1, 3, 10_000, 8, inserts=977, samples=83)
    after = Limiter(0.1, 3, 10_000, 8)
    after.restore(before.state())
    assert after == before


def test_a_ratio_that_is_changed_before_the_first_update_owes_nothing() -> None:
    after = Limiter(2.0, 300, 10_000, 8)
    after.restore(Limiter(4.0, 1000, 10_000, 8, inserts=200).state())
    after.inserts = 300
    assert after.error == 0


def test_capacity_below_min_rows_is_refused_at_once() -> None:
    """That would wait for ever."""
    with pytest.raises(ValueError, match="capacity of 99 rows is too small"):
        Limiter(samples_per_insert=1.0, min_rows=100, capacity_rows=99, batch=1)


def test_a_refused_fit_leaves_the_window_as_it_was() -> None:
    """Chunks that are too big are refused; the run goes on with what it had."""
    limiter = make(capacity=200)
    before = limiter.window_rows
    with pytest.raises(ValueError, match="too small"):
        limiter.fit(2, 150)
    assert limiter.window_rows == before


@pytest.mark.parametrize(("spi", "min_rows"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_senseless_values_are_refused(spi: float, min_rows: int) -> None:
    """Errors state the value."""
    with pytest.raises(ValueError, match="it has to be"):
        Limiter(samples_per_insert=spi, min_rows=min_rows, capacity_rows=1000, batch=1)
