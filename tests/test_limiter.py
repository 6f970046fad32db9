"""The limiter: the equation by hand, no deadlock, and a simulated herd whose error stays in the band."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.limiter import Limiter


def make(spi: float = 4.0, min_rows: int = 100, capacity: int = 10_000, batch: int = 32, slack: int = 20) -> Limiter:
    """A limiter with its slack set."""
    limiter = Limiter(samples_per_insert=spi, min_rows=min_rows, capacity_rows=capacity, batch=batch)
    limiter.set_slack(slack)
    return limiter


def test_below_min_rows_actors_go_and_the_learner_waits() -> None:
    """Up to and not including min_rows."""
    limiter = make()
    limiter.inserts = 99
    assert (limiter.gate_open, limiter.may_sample) == (True, False)
    limiter.inserts = 100
    assert (limiter.gate_open, limiter.may_sample) == (True, True)


def test_error_and_band_by_hand() -> None:
    """4 samples per insert, slack 20: half_band = 2 * 4 * 20 = 160; error = 4 * (inserts - 100) - samples."""
    limiter = make()
    assert limiter.half_band == 160
    limiter.inserts, limiter.samples = 150, 40
    assert (limiter.error, limiter.gate_open) == (160, True)
    limiter.inserts = 151
    assert (limiter.error, limiter.gate_open) == (164, False)
    limiter.samples = 4 * 51 + 128
    assert (limiter.error, limiter.may_sample) == (-128, True)  # one more batch brings it to -160
    limiter.samples += 1
    assert (limiter.error, limiter.may_sample) == (-129, False)


@pytest.mark.parametrize("spi", [0.3, 1.5, 7.25])
def test_ratio_is_not_rounded(spi: float) -> None:
    """ray#6127: ratios were rounded to integers. Half a sample per insert is half a sample per insert."""
    limiter = make(spi=spi, slack=0)
    for _ in range(20_000):
        if limiter.may_sample:
            limiter.samples += limiter.batch
        else:
            limiter.inserts += 1
    assert limiter.realised == pytest.approx(spi, rel=0.05)


def test_realised_counts_from_min_rows_on() -> None:
    """0 before there is anything to count."""
    limiter = make(min_rows=100)
    assert limiter.realised == 0.0
    limiter.inserts, limiter.samples = 100, 32
    assert limiter.realised == 0.0
    limiter.inserts, limiter.samples = 108, 20
    assert limiter.realised == 2.5


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    spi=st.floats(0.01, 500),
    batch=st.integers(1, 1024),
    slack=st.integers(0, 5000),
    min_rows=st.integers(1, 10_000),
    inserts=st.integers(0, 1 << 40),
    offset=st.floats(-3, 3),
)
def test_one_side_may_always_go(spi: float, batch: int, slack: int, min_rows: int, inserts: int, offset: float) -> None:
    """No state stops both: a shut gate and a waiting learner would be a deadlock."""
    limiter = make(spi=spi, min_rows=min_rows, capacity=1 << 50, batch=batch, slack=slack)
    limiter.inserts = inserts
    limiter.samples = max(0, int(spi * (inserts - min_rows) - offset * limiter.half_band))
    assert limiter.gate_open or limiter.may_sample


@pytest.mark.parametrize(
    ("spi", "batch", "slack", "needed"),
    [
        (4.0, 32, 20, 100 + 2 * 20 + 20),  # the gate shuts at 2 * slack beyond min_rows, slack more are under way
        (0.1, 32, 20, 100 + 320 + 20),  # the band of one batch: 32 / 0.1 rows
        (4.0, 32, 0, 100 + 8),
    ],
)
def test_capacity_that_would_lose_rows_unseen_is_refused(spi: float, batch: int, slack: int, needed: int) -> None:
    """The bound is exact, and the message says what is needed."""
    make(spi=spi, capacity=needed, batch=batch, slack=slack)
    with pytest.raises(ValueError, match=f"at least {needed} are needed"):
        make(spi=spi, capacity=needed - 1, batch=batch, slack=slack)


@pytest.mark.parametrize("ratio", [(8.0, 100), (2.0, 100), (4.0, 50), (4.0, 3000), (0.3, 7)])
def test_another_ratio_holds_from_the_resume_on(ratio: tuple[float, int]) -> None:
    """Not for the million samples before, which would shut the gate, or stop the learner, for as long again."""
    before = Limiter(4.0, 100, 10_000, 8, inserts=1000, samples=3594)
    assert before.error == 6
    after = Limiter(*ratio, 10_000, 8)
    after.restore(before.state())
    rows_until_ready = max(0, ratio[1] - 1000)
    assert after.gate_open
    after.inserts += rows_until_ready
    assert after.error == pytest.approx(6)
    after.inserts += 100
    assert after.error == pytest.approx(6 + 100 * ratio[0])


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


def test_refused_slack_leaves_the_band_as_it_was() -> None:
    """An actor too many is refused; the run goes on with what it had."""
    limiter = make(capacity=200)
    with pytest.raises(ValueError, match="too small"):
        limiter.set_slack(150)
    assert limiter.half_band == 160


@pytest.mark.parametrize(("spi", "min_rows"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_senseless_values_are_refused(spi: float, min_rows: int) -> None:
    """Errors state the value."""
    with pytest.raises(ValueError, match="it has to be"):
        Limiter(samples_per_insert=spi, min_rows=min_rows, capacity_rows=1000, batch=1)


ACTORS, CHUNK, BATCH, REFRESH_TICKS = 4, 16, 64, 5


def simulate(limiter: Limiter, rows_per_tick: int, updates_per_tick: int, ticks: int) -> list[float]:
    """Actors that see the gate up to one refresh late and have a chunk in flight each; a learner of another speed.

    Returns the error after each tick from min_rows on.
    """
    seen_gate = True
    in_flight: list[int] = []
    collecting = [0] * ACTORS
    errors = []
    for tick in range(ticks):
        if tick % REFRESH_TICKS == 0:
            seen_gate = limiter.gate_open
        limiter.inserts += sum(in_flight)
        in_flight = []
        for actor in range(ACTORS):
            if seen_gate:
                collecting[actor] += rows_per_tick
            if collecting[actor] >= CHUNK:
                in_flight.append(collecting[actor])
                collecting[actor] = 0
        for _ in range(updates_per_tick):
            if limiter.may_sample:
                limiter.samples += limiter.batch
        if limiter.inserts >= limiter.min_rows:
            errors.append(limiter.error)
    return errors


@pytest.mark.parametrize("rows_per_tick", [1, 4, 16])
@pytest.mark.parametrize("updates_per_tick", [0, 1, 3, 50])
def test_error_stays_in_the_band_whoever_is_faster(rows_per_tick: int, updates_per_tick: int) -> None:
    """Above by no more than what was under way when the gate shut, below not at all; a stalled learner overruns
    nothing that was not sampled, with the smallest capacity that is accepted."""
    slack = ACTORS * (2 * CHUNK + REFRESH_TICKS * rows_per_tick)  # one in flight, one being collected, one refresh
    limiter = make(spi=2.0, min_rows=200, capacity=200 + 3 * slack, batch=BATCH, slack=slack)
    errors = simulate(limiter, rows_per_tick, updates_per_tick, ticks=3000)
    assert max(errors) <= limiter.half_band + limiter.samples_per_insert * slack
    assert min(errors) >= -limiter.half_band
    unseen = limiter.inserts - limiter.samples / limiter.samples_per_insert
    assert unseen <= limiter.capacity_rows
    if updates_per_tick:
        assert limiter.samples > 10 * BATCH
        assert abs(limiter.realised - 2.0) <= (limiter.half_band + 2.0 * slack) / (limiter.inserts - limiter.min_rows)
