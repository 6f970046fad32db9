"""Credit: who may send how much, by hand; and a herd whose actors, learner and server do their worst."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.credit import CREDIT_BYTES, LAPSE_S, PROBE_S, Credit, Lender, pack_credit
from replay.limiter import Limiter

CHUNK = 10


def lender(*slots: int, window: int = 80) -> Lender:
    """Lends to these slots, each of which is heard of, and has sent one chunk."""
    made = Lender()
    made.fit(slots, CHUNK, window)
    for slot in slots:
        made.acknowledge(slot, 1, CHUNK)
    return made


def credit_of(lends: Lender, slot: int) -> Credit:
    credit = Credit.unpack(lends.pack()[slot * CREDIT_BYTES : (slot + 1) * CREDIT_BYTES])
    assert credit is not None
    return credit


def held(lends: Lender, slots: int) -> list[int]:
    return [credit_of(lends, slot).rows for slot in range(slots)]


@pytest.mark.parametrize(
    ("credit", "incarnation", "sent", "waited_s", "allowed"),
    [
        (Credit(3, 100, 20), 3, 100, 0.0, True),
        (Credit(3, 100, 20), 3, 110, 0.0, True),
        (Credit(3, 100, 20), 3, 111, 0.0, False),  # a whole chunk has to fit
        (Credit(3, 100, 20), 3, 120, PROBE_S - 0.1, False),
        (Credit(3, 100, 20), 3, 120, PROBE_S, True),  # what it sent may be lost
        (Credit(3, 100, 0), 3, 100, 1e9, False),  # nothing is lost, there is no credit
        (Credit(3, 100, 20), 4, 0, 0.0, True),  # another incarnation begins, with a chunk
        (Credit(3, 100, 20), 4, 10, 0.0, False),
        (Credit(3, 100, 20), 4, 10, PROBE_S, True),
        (Credit(3, 100, 0), 4, 0, 1e9, False),
        (Credit(3, 100, 20), 4, 5_000, PROBE_S, True),  # the learner went on from before this incarnation
        (Credit(0, 0, 10), 1, 0, 0.0, True),
    ],
)
def test_what_an_actor_may_send(credit: Credit, incarnation: int, sent: int, waited_s: float, allowed: bool) -> None:
    """Cases by hand: chunks of 10 rows."""
    assert credit.allows(incarnation, sent, CHUNK, waited_s) is allowed


def test_the_value_is_an_array_by_slot() -> None:
    """24 bytes each; a slot between that nobody has is empty, one beyond the end has none."""
    value = pack_credit({2: Credit(5, 1 << 40, 7), 0: Credit(1, 2, 3)})
    assert [value[at : at + CREDIT_BYTES] for at in range(0, len(value), CREDIT_BYTES)] == [
        bytes([1, *[0] * 7, 2, *[0] * 7, 3, *[0] * 7]),
        bytes(24),
        bytes([5, *[0] * 7, *[0] * 5, 1, 0, 0, 7, *[0] * 7]),
    ]
    assert Credit.unpack(value[48:72]) == (5, 1 << 40, 7)
    assert Credit.unpack(value[72:96]) is None
    assert pack_credit({}) == b""


def test_room_is_shared_out_in_whole_chunks_to_those_with_the_fewest() -> None:
    """65 rows among three: two chunks each, the rest waits; then whoever sends gets again."""
    lends = lender(0, 1, 2, window=65)
    lends.lend(65)
    assert held(lends, 3) == [20, 20, 20]
    assert lends.rows == 60
    lends.acknowledge(1, 1, CHUNK + 20)
    assert held(lends, 3) == [20, 0, 20]
    lends.lend(60)
    assert held(lends, 3) == [20, 20, 20]


def test_with_less_than_a_chunk_each_slots_take_turns() -> None:
    """Room for two chunks, five actors that each send theirs at once: everybody has had as many turns."""
    lends = lender(*range(5), window=20)
    sent, turns = [CHUNK] * 5, [0] * 5
    for _ in range(50):
        lends.lend(20)
        for slot, rows in enumerate(held(lends, 5)):
            if rows:
                turns[slot] += 1
                sent[slot] += rows
                lends.acknowledge(slot, 1, sent[slot])
    assert turns == [20] * 5


def test_nobody_holds_more_than_its_share() -> None:
    """Room that nobody else wants (the others hold theirs) is not for the fastest."""
    lends = lender(0, 1, window=80)
    lends.lend(1000)
    assert held(lends, 2) == [40, 40]


def test_a_part_of_a_chunk_that_is_left_is_filled_up() -> None:
    """A chunk that was sent early, by flush_s, leaves a part of its credit."""
    lends = lender(0, window=20)
    lends.lend(20)
    lends.acknowledge(0, 1, CHUNK + 3)
    assert (credit_of(lends, 0), lends.rows) == ((1, 13, 17), 10)
    lends.lend(19)
    assert credit_of(lends, 0) == (1, 13, 17)
    lends.lend(20)
    assert credit_of(lends, 0) == (1, 13, 20)


def test_a_slot_that_was_not_heard_of_gets_a_chunk() -> None:
    """An actor that is yet to start, or gone, is not lent more."""
    lends = Lender()
    lends.fit([0, 1], CHUNK, 80)
    lends.lend(1000)
    assert held(lends, 2) == [10, 10]


def test_a_new_incarnation_begins_with_what_it_has_sent() -> None:
    """What the one before was still lent is fenced off."""
    lends = lender(0)
    lends.lend(1000)
    assert credit_of(lends, 0) == (1, 10, 80)
    lends.acknowledge(0, 2, CHUNK)
    assert credit_of(lends, 0) == (2, 10, 0)


def test_what_a_dead_actor_holds_is_taken_back() -> None:
    """Room for one chunk, which an actor holds that never sends: the other one has it after LAPSE_S."""
    lends = lender(0, 1, window=10)
    lends.lend(10)
    assert held(lends, 2) == [10, 0]
    lends.pass_time(LAPSE_S / 2)
    lends.lend(10)
    assert held(lends, 2) == [10, 0]
    lends.pass_time(LAPSE_S / 2)
    lends.lend(10)
    assert held(lends, 2) == [0, 10]


def test_joining_and_leaving() -> None:
    """Those that stay keep what they hold, those that leave have none, and shares follow the number."""
    lends = lender(0, 1, window=80)
    lends.lend(80)
    lends.fit([0], CHUNK, 40)
    assert lends.pack() == pack_credit({0: Credit(1, 10, 40)})
    lends.acknowledge(1, 1, 1000)  # what it had in hand
    lends.fit(range(4), CHUNK, 160)
    lends.lend(160)
    assert held(lends, 4) == [40, 10, 10, 10]


def test_rows_beyond_the_credit_are_acknowledged_like_others() -> None:
    """The boundary rows of a flush, or a probe."""
    lends = lender(0)
    lends.acknowledge(0, 1, 77)
    assert credit_of(lends, 0) == (1, 77, 0)


# A herd in a simulation: the real equation and the real lender; actors that act on what they read when they did.


@dataclass
class SimActor:
    incarnation: int = 1
    sent: int = 0
    credit: Credit | None = None
    since_s: float = 0.0


@dataclass
class Sim:
    """Chunks lie in ``stream`` until the learner takes them in; a restart of the learner goes back to ``saved``."""

    limiter: Limiter
    actors: list[SimActor]
    chunk: int
    now_s: float = 0.0
    lends: Lender = field(default_factory=Lender)
    published: list[Credit | None] = field(default_factory=list)
    stream: list[tuple[int, int, int, int]] = field(default_factory=list)  # slot, incarnation, rows, sent with them
    beyond: int = 0

    def __post_init__(self) -> None:
        self.limiter.fit(len(self.actors), self.chunk)
        self.lends.fit(range(len(self.actors)), self.chunk, self.limiter.window_rows)
        self.published = [None] * len(self.actors)

    def look(self, slot: int) -> None:
        actor = self.actors[slot]
        before, actor.credit = actor.credit, self.published[slot]
        if (before and before[:2]) != (actor.credit and actor.credit[:2]):
            actor.since_s = self.now_s

    def act(self, slot: int, rows: int) -> bool:
        """Send a chunk of at most ``rows`` where what was last read allows it, and read again with the reply."""
        actor = self.actors[slot]
        waited_s = self.now_s - actor.since_s
        if actor.credit is None or not actor.credit.allows(actor.incarnation, actor.sent, self.chunk, waited_s):
            return False
        if not actor.credit.allows(actor.incarnation, actor.sent, self.chunk, 0.0):
            self.beyond += self.chunk  # a probe
        rows = min(rows, self.chunk)
        actor.sent += rows
        self.stream.append((slot, actor.incarnation, rows, actor.sent))
        actor.since_s = self.now_s
        self.look(slot)
        return True

    def restart(self, slot: int) -> None:
        """Killed; what it sent stays, and its next incarnation may begin on the same credit."""
        self.actors[slot] = SimActor(self.actors[slot].incarnation + 1, since_s=self.now_s)
        self.beyond += self.chunk

    def cycle(self, chunks: int, updates: int) -> None:
        """Take in so many chunks, and sample at most so often."""
        taken, self.stream = self.stream[:chunks], self.stream[chunks:]
        for slot, incarnation, rows, sent in taken:
            self.limiter.insert(rows, sampleable=True)
            self.lends.acknowledge(slot, incarnation, sent)
        while updates > 0 and self.limiter.may_sample:
            self.limiter.samples, updates = self.limiter.samples + self.limiter.batch, updates - 1
        self.lends.lend(self.limiter.room_rows)
        value = self.lends.pack()
        self.published = [Credit.unpack(value[at : at + CREDIT_BYTES]) for at in range(0, len(value), CREDIT_BYTES)]

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        if not self.stream:
            lapsed = self.lends.rows
            self.lends.pass_time(seconds)
            self.beyond += max(0, lapsed - self.lends.rows)  # its actor may be at it all the same

    def empty_server(self) -> None:
        """Everything is lost that was not read yet; the learner publishes again."""
        self.stream = []

    def restart_learner(self, rows_back: int) -> None:
        """Another learner, that has the limiter of some time ago, and knows the actors by older chunks."""
        self.beyond += sum(actor.credit.rows for actor in self.actors if actor.credit) + rows_back
        self.limiter.inserts = max(0, self.limiter.inserts - rows_back)
        self.limiter.samples = max(0, self.limiter.samples - int(self.limiter.samples_per_insert * rows_back))
        self.lends = Lender()
        self.lends.fit(range(len(self.actors)), self.chunk, self.limiter.window_rows)
        for slot, actor in enumerate(self.actors):
            self.lends.acknowledge(slot, max(0, actor.incarnation - 1), 1)

    def in_the_band(self) -> bool:
        """The error, with all that is on its way, but for what was sent beyond the credit."""
        limiter = self.limiter
        on_way = sum(rows for _, _, rows, _ in self.stream)
        error = limiter.error + limiter.samples_per_insert * (on_way - self.beyond)
        return limiter.inserts < limiter.min_rows or error <= limiter.half_band + 1e-6

    def fair(self) -> None:
        """All work as they should, second by second: nobody is starved, and the learner learns, within a minute and the
        time to fill the band."""
        before = [(actor.incarnation, actor.sent) for actor in self.actors]
        samples, rounds = self.limiter.samples, 0
        rows = self.limiter.min_rows + 2 * self.limiter.half_band / self.limiter.samples_per_insert
        most = 60 + rows / self.chunk
        while self.limiter.samples == samples or not all(
            (actor.incarnation, actor.sent) > was for actor, was in zip(self.actors, before, strict=True)
        ):
            for slot in range(len(self.actors)):
                self.look(slot)
                self.act(slot, self.chunk)
            self.cycle(1 << 30, 1 << 20)
            self.pass_time(1.0)
            rounds += 1
            assert rounds < most, f"{self.limiter}, {self.published}, {self.actors}"


FAULTS = ("act", "act", "act", "act", "look", "cycle", "cycle", "cycle", "time", "restart", "empty", "learner")


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    actors=st.integers(1, 5),
    chunk=st.integers(1, 64),
    spi=st.sampled_from([0.1, 1.0, 4.0, 16.0]),
    min_rows=st.integers(1, 200),
    extra=st.integers(0, 4000),
    seed=st.integers(0, 1 << 32),
    with_faults=st.booleans(),
)
def test_whatever_happens_the_error_stays_in_the_band_and_all_go_on(
    actors: int, chunk: int, spi: float, min_rows: int, extra: int, seed: int, with_faults: bool
) -> None:
    """Actors of different speed, a learner that looks seldom, and, in half of the examples, restarts of either, a
    server that is emptied, credit that is read late. Then everybody works again, and everybody gets somewhere."""
    batch = 8
    limiter = Limiter(spi, min_rows, min_rows + int(batch / spi) + 2 + chunk + extra, batch)
    sim, rng = Sim(limiter, [SimActor() for _ in range(actors)], chunk), Random(seed)
    sim.cycle(0, 0)
    for _ in range(200):
        slot, what = rng.randrange(actors), rng.choice(FAULTS if with_faults else FAULTS[:8])
        if what == "act":
            while sim.act(slot, rng.randint(1, chunk)) and rng.random() < 0.8:
                pass
        elif what == "look":
            sim.look(slot)
        elif what == "cycle":
            sim.cycle(rng.randint(0, 8), rng.randint(0, 64))
        elif what == "time":
            sim.pass_time(rng.choice([0.1, 1.0, 10.0]))
        elif what == "restart":
            sim.restart(slot)
        elif what == "empty":
            sim.empty_server()
        else:
            sim.restart_learner(rng.choice([0, chunk, 10 * chunk]))
        assert sim.in_the_band()
        assert limiter.inserts < limiter.min_rows or limiter.error >= -limiter.half_band or with_faults
    sim.fair()


@pytest.mark.parametrize("capacity", [1_000_000, 100_000, 10_000])
def test_a_thousand_actors(capacity: int) -> None:
    """What is on its way is bounded by the replay, however many there are, from the start on; the learner may freeze
    whenever it likes. And nobody is starved, even where there is room for a few of them at a time."""
    limiter = Limiter(16.0, 500, capacity, 64)
    sim, rng = Sim(limiter, [SimActor() for _ in range(1_000)], 128), Random(1)
    most = 0
    for _ in range(20):
        for slot in rng.sample(range(1_000), 1_000):
            sim.look(slot)
            while sim.act(slot, 128):
                pass
        most = max(most, sum(rows for _, _, rows, _ in sim.stream))
        assert sim.in_the_band()
        sim.cycle(1 << 30, 10_000)
    assert most <= 500 + capacity // 4 + 128
    before = [actor.sent for actor in sim.actors]
    for _ in range(2 * 1_000 * 128 // limiter.window_rows + 2):
        for slot in range(1_000):
            sim.look(slot)
            sim.act(slot, 128)
        sim.cycle(1 << 30, 1 << 20)
    assert all(actor.sent > was for actor, was in zip(sim.actors, before, strict=True))
