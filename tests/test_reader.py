"""The reader: nothing is trained on twice, nothing bad at all, and what is missing is counted, row by row."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_makers import CODEC, RUN, SCHEMA, FakeActor, append, chunk_id, reader_on, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.checkpoint import pack
from replay.chunk import BOUNDARY, FIRST, MAX_VERSION, Chunk, Codec, Counters, encode
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, ChunkLog, Entry, Fenced, Unavailable
from replay.ledger import Reading, Unbalanced
from replay.mirror import Mirror
from replay.quarantine import QUARANTINED
from replay.reader import Reader


def make(
    log: ChunkLog, slots: int = 1, capacity: int = 1000, quarantine: Path | None = None, reward_scale: float = 1.0
) -> tuple[Reader, Mirror]:
    """A reader of the first ``slots`` slots, n = 1, and its mirror."""
    mirror = Mirror(SCHEMA, capacity)
    reader = reader_on(log, CODEC, mirror, n=1, gamma=0.9, quarantine=quarantine, reward_scale=reward_scale)
    reader.follow(range(slots))
    return reader, mirror


def names(mirror: Mirror) -> set[int]:
    """The rows that can be sampled, and those that they bootstrap from, by their observations."""
    ids = np.arange(mirror.start, mirror.end)
    batch = mirror.gather(ids[mirror.sampleable(ids)])
    return set(np.concatenate((batch.s_tm1, batch.s_t)).ravel().astype(int).tolist())


def observations(chunk: Chunk) -> set[int]:
    """A chunk's rows."""
    return set(chunk.obs.ravel().astype(int).tolist())


class TellsTwice(MemoryLog):
    """A log that repeats everything that it ever held."""

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        return super().read(dict.fromkeys(cursors, ChunkId()), max_bytes)


def test_all_rows_of_all_slots_arrive_once() -> None:
    """And the books say so; env steps exclude boundary rows."""
    log = MemoryLog()
    reader, mirror = make(log, slots=2)
    chunks = [actor.send(log) for actor in (FakeActor(0), FakeActor(1, lanes=2)) for _ in range(3)]
    inserted = reader.poll()
    rows, env_steps = sum(chunk.rows for chunk in chunks), sum(chunk.env_steps for chunk in chunks)
    assert mirror.end == reader.ledger.totals.rows == rows == 36
    assert inserted == reader.ledger.totals.env_steps == env_steps < rows
    assert reader.ledger.totals.chunks == 6
    assert reader.ledger.totals.bytes == sum(len(encode(chunk, SCHEMA, RUN)) for chunk in chunks)
    assert not reader.ledger.totals.refused
    assert not reader.ledger.totals.rows_lost
    assert reader.poll() == 0


def test_repeated_ids_are_ignored() -> None:
    """No id is ingested twice, whatever the log says."""
    log = TellsTwice()
    reader, mirror = make(log)
    actor = FakeActor()
    actor.send(log)
    reader.poll()
    actor.send(log)
    assert reader.poll() > 0
    assert mirror.end == 8
    assert reader.ledger.totals.refused == {"duplicate": 1}
    assert reader.ledger.slots[0].rows_read == reader.ledger.slots[0].counters.rows == 8


def test_gap_is_counted_to_the_row() -> None:
    """Two chunks of 4 and 6 rows never arrive: 10 rows are lost, known from the next header's cumulative count."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor(lanes=2)
    actor.send(log, 1)
    actor.chunk(2)
    actor.chunk(3)
    actor.send(log, 4)
    reader.poll()
    assert sum(reader.ledger.totals.rows_lost.values()) == 10
    books = reader.ledger.slots[0]
    assert (books.rows_read, books.rows_lost, books.counters.rows) == (10, 10, 20)


def test_missing_first_chunk_is_a_gap() -> None:
    """A reader that comes late, or a first chunk that was lost."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.chunk(3)
    actor.send(log, 2)
    reader.poll()
    assert sum(reader.ledger.totals.rows_lost.values()) == 3


FATES = ("arrives", "arrives", "lost", "spoilt", "restart", "repeated", "emptied")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(seed=st.integers(0, 1 << 16), fates=st.lists(st.sampled_from(FATES), max_size=25))
def test_conservation_law(seed: int, fates: list[str]) -> None:
    """Per incarnation, after every chunk: rows read + rows lost in gaps = cumulative rows of the last good header.

    ``repeated``: all that the log ever held is told again; ``emptied``: the server restarts empty, the chunk unread.
    """
    log = MemoryLog()
    twice = TellsTwice()
    twice._chunks, twice._last = log._chunks, log._last
    reader, mirror = make(log)
    actor, rng = FakeActor(seed=seed), random.Random(seed)
    sent = arrived = taken = 0
    for fate in fates:
        if fate == "restart":
            actor.restart()
            sent = arrived = 0
        chunk = actor.chunk(rng.randint(1, 5))
        sent += chunk.rows
        if fate != "lost":
            append(log, chunk, spoilt(chunk) if fate == "spoilt" else None)
        if fate == "emptied":
            log._chunks.clear()
            log._last.clear()
        reader._log = twice if fate == "repeated" else log
        before = reader.ledger.slots[0].cursor
        reader.poll()
        reader.ledger.check()
        books = reader.ledger.slots[0]
        assert books.rows_read + books.rows_lost == books.counters.rows
        assert books.cursor >= before
        if fate in ("arrives", "restart", "repeated"):
            arrived += chunk.rows
            taken += chunk.rows
            assert (books.rows_read, books.counters.rows) == (arrived, sent)
    assert mirror.end == reader.ledger.totals.rows == taken, "a chunk was taken twice"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rows_read": 9}, "slot 1, incarnation 2: 9 rows read .* 2 lost are not the 10 .* up to 2-3"),
        ({"rows_lost": 0}, "8 rows read .* 0 lost are not the 10"),
        ({"counters": Counters(rows=11)}, "8 rows read .* 2 lost are not the 11"),
        ({"cursor": ChunkId(2, 2)}, "slot 1: the cursor moved back to 2-2, from 2-3"),
        ({"cursor": ChunkId(1, 9), "taken": ChunkId(1, 9)}, "slot 1: the cursor moved back to 1-9, from 2-3"),
    ],
)
def test_books_that_are_wrong_are_told(wrong: dict[str, Any], told: str) -> None:
    """What the law says is asserted while a run goes, and the message says where it broke."""
    log = MemoryLog()
    reader, _ = make(log, slots=2)
    actor = FakeActor(1)
    actor.send(log)
    actor.restart()
    actor.send(log)
    actor.chunk(2)
    actor.send(log)
    reader.poll()
    reader.ledger.check()
    for name, value in wrong.items():
        setattr(reader.ledger.slots[1], name, value)
    with pytest.raises(Unbalanced, match=told):
        reader.ledger.check()


@pytest.mark.parametrize("difference", [-1, 1, 1 << 40])
def test_count_that_cannot_be_is_refused(difference: int) -> None:
    """Without a gap the header's count has to be exact."""
    log = MemoryLog()
    reader, mirror = make(log)
    actor = FakeActor()
    actor.send(log)
    chunk = actor.chunk()
    append(log, replace(chunk, counters=chunk.counters._replace(rows=chunk.counters.rows + difference)))
    reader.poll()
    assert reader.ledger.totals.refused == {"counters": 1}
    assert mirror.end == 4


def test_count_too_big_for_its_gap_does_not_poison_the_slot() -> None:
    """One lie of 2^62 rows behind a gap would otherwise have every later, honest chunk refused."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.send(log)
    actor.chunk()
    liar = actor.chunk()
    append(log, replace(liar, counters=liar.counters._replace(rows=1 << 62)))
    honest = actor.send(log)
    reader.poll()
    assert reader.ledger.totals.refused == {"counters": 1}
    assert reader.ledger.slots[0].taken == chunk_id(honest)
    assert sum(reader.ledger.totals.rows_lost.values()) == 8


LIES: list[dict[str, Any]] = [
    {"env_steps": 1}, {"env_steps": -1}, {"episodes": 5}, {"episodes": -1}, {"refusals": -1}, {"credit_wait_s": -0.5},
    {"return_sum": 1.0, "episodes": 0}, {"return_sum": 1e300, "episodes": 1},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_counters_that_cannot_follow_those_before_are_refused(lie: dict[str, Any]) -> None:
    """Each a sum that a sane header may have, and that this chunk cannot have led to: the figures of the run's returns
    stay what the honest chunks say, and what comes next is taken."""
    log = MemoryLog()
    reader, mirror = make(log)
    actor = FakeActor(p_end=0.0)
    before = replace(actor.chunk(), counters=Counters(3, 4, 2, 7, 5.0, 2.0))
    before.flags[-1] = BOUNDARY
    actor._next_flags, actor._counters = [FIRST], before.counters
    append(log, before)
    chunk = actor.chunk()
    lying = {name: getattr(chunk.counters, name) + more for name, more in lie.items()}
    append(log, replace(chunk, counters=chunk.counters._replace(**lying)))
    honest = actor.send(log)
    reader.poll()
    assert reader.ledger.totals.refused == {"counters": 1}
    assert reader.ledger.counters() == honest.counters
    assert mirror.end == 8
    reader.ledger.check()


def test_a_version_of_the_weights_that_was_never_published_is_refused() -> None:
    """It would hide how stale an actor's weights are."""
    log = MemoryLog()
    reader, _ = make(log)
    reader.newest_version = 4
    actor = FakeActor()
    for weight_version in (4, 5, MAX_VERSION):
        append(log, replace(actor.chunk(), weight_version=weight_version))
    reader.poll()
    assert (reader.ledger.totals.chunks, dict(reader.ledger.totals.refused)) == (1, {"weights": 2})


TOO_FAR = [
    ChunkId(1, (1 << 33)), ChunkId(1, (1 << 63) - 1), ChunkId(1, 1 << 63), ChunkId(1, (1 << 64) - 1),
    ChunkId(1 << 21, 1), ChunkId((1 << 63) - 1, 1), ChunkId(1 << 63, 1), ChunkId((1 << 64) - 1, (1 << 64) - 1),
    ChunkId(2, 0), ChunkId(2, 1 << 33),
]  # fmt: skip


@pytest.mark.parametrize("far", TOO_FAR, ids=str)
def test_an_id_that_no_actor_can_have_sent_takes_its_stream_and_not_the_slot(far: ChunkId) -> None:
    """It is refused, once, whatever is in it and comes after it; the stream begins anew, and its actor goes on."""
    log = MemoryLog()
    reader, mirror = make(log, slots=2)
    actor, other = FakeActor(0), FakeActor(1)
    actor.send(log)
    log._last[0] = far
    log._chunks[0][far] = encode(replace(actor.chunk(), incarnation=far.incarnation, seq=far.seq), SCHEMA, RUN)
    for _ in range(3):
        other.send(log)
        reader.poll()
    assert reader.ledger.totals.refused == {"id": 1}
    assert reader.exhausted == {0}
    assert reader.ledger.slots[0].cursor == ChunkId(1, 1)
    assert pack({"reader": reader.state()})
    chunk = actor.chunk()
    if far.seq >= chunk.seq:
        with pytest.raises((Unavailable, Fenced)):
            append(log, chunk)
    reader.trim(1 << 30)
    append(log, chunk)
    reader.poll()
    assert reader.ledger.totals.refused == {"id": 1}
    assert reader.ledger.slots[0].taken == chunk_id(chunk)
    assert mirror.end == 2 * 4 + 3 * 4
    reader.ledger.check()


def test_a_stranger_that_pushes_the_id_a_little_fences_the_actor_and_the_next_goes_on() -> None:
    """Within what restarts leave unseen nobody can tell it from an actor's own."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.send(log)
    log.append(0, ChunkId(1 << 20, 1 << 32), b"stranger")
    with pytest.raises(Fenced):
        actor.send(log)
    actor._incarnation = 1 << 20
    actor.restart()
    actor.send(log)
    reader.poll()
    assert reader.ledger.totals.refused == {"short": 1}
    assert reader.ledger.totals.chunks == 2


def test_bad_chunks_are_counted_by_reason_and_never_sampled() -> None:
    """Each kind leaves the stream flowing; no row of theirs is in a batch, none bootstraps from them."""
    log = MemoryLog()
    reader, mirror = make(log, capacity=40)
    actor = FakeActor(p_end=0.0)
    good, bad = [actor.send(log)], []

    def spoil(data: bytes | None = None, **changes: object) -> None:
        chunk = actor.chunk()
        bad.append(chunk)
        append(log, replace(chunk, **changes) if changes else chunk, data)  # type: ignore[arg-type]
        good.append(actor.send(log))

    spoil(data=b"")
    spoil(data=b"GET / HTTP/1.1\r\n" * 20)
    chunk = actor.chunk()
    bad.append(chunk)
    append(log, chunk, spoilt(chunk))
    good.append(actor.send(log))
    spoil(reward=np.full((4, 1), np.nan, np.float32))
    spoil(action=np.full((4, 1), 99, np.int32))
    spoil(counters=Counters(rows=1))
    huge = actor.chunk(41)
    bad.append(huge)
    append(log, huge)
    good.append(actor.send(log))
    reader.poll()
    assert reader.ledger.totals.refused == {
        "short": 1, "magic": 1, "crc": 1, "value": 1, "action": 1, "counters": 1, "size": 1,
    }  # fmt: skip
    assert sum(reader.ledger.totals.rows_lost.values()) == 6 * 4 + 41
    assert reader.ledger.totals.chunks == len(good)
    seen = names(mirror)
    assert not seen & set[int]().union(*map(observations, bad))
    assert seen == set[int]().union(*map(observations, good))


def test_chunk_of_another_run_or_stored_under_another_id_is_refused() -> None:
    """Somebody copied a stream."""
    log = MemoryLog()
    reader, mirror = make(log, slots=2)
    chunk = FakeActor().chunk()
    log.append(0, ChunkId(1, 1), encode(chunk, SCHEMA, "another-run"))
    log.append(1, ChunkId(1, 1), encode(chunk, SCHEMA, RUN))
    reader.poll()
    assert reader.ledger.totals.refused == {"run": 1, "identity": 1}
    assert mirror.end == 0


def test_first_few_bad_chunks_are_kept_for_inspection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As they came, named by slot, id and reason; not more, so that the disk does not fill."""
    folder = tmp_path / "made" / "when needed"
    log = MemoryLog()
    reader, _ = make(log, quarantine=folder)
    actor = FakeActor()
    actor.send(log)
    reader.poll()
    assert not folder.exists()
    for _ in range(QUARANTINED + 3):
        chunk = actor.chunk()
        append(log, chunk, spoilt(chunk))
    reader.poll()
    assert reader.ledger.totals.refused == {"crc": QUARANTINED + 3}
    logged = [record.getMessage() for record in caplog.records]
    assert [text.rpartition("; ")[2] for text in logged] == [f"{n} for this reason" for n in (1, 2, 4, 8)], "no flood"
    assert logged[0].startswith("chunk 1-2 of slot 0 is refused: ")
    assert sorted(path.name for path in folder.iterdir()) == [f"0-1-{seq}.crc.chunk" for seq in range(2, 7)]
    assert (folder / "0-1-6.crc.chunk").stat().st_size == len(encode(chunk, SCHEMA, RUN))


def test_duplicates_do_not_use_up_the_quarantine(tmp_path: Path) -> None:
    """A repeated id is not a bad chunk."""
    log = TellsTwice()
    reader, _ = make(log, quarantine=tmp_path / "q")
    actor = FakeActor()
    for _ in range(5):
        actor.send(log)
        reader.poll()
    chunk = actor.chunk()
    append(log, chunk, spoilt(chunk))
    reader.poll()
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["0-1-6.crc.chunk"]


def test_quarantine_that_cannot_be_written_does_not_stop_the_reader(tmp_path: Path) -> None:
    """A full or read-only disk must not end the run because of a bad chunk."""
    (tmp_path / "file").touch()
    log = MemoryLog()
    reader, _ = make(log, quarantine=tmp_path / "file" / "folder")
    actor = FakeActor()
    chunk = actor.chunk()
    append(log, chunk, spoilt(chunk))
    actor.send(log)
    assert reader.poll() > 0
    assert reader.ledger.totals.refused == {"crc": 1}


def test_budget_leaves_a_backlog_for_the_next_poll() -> None:
    """One chunk at least per poll; nothing is lost or read twice; the log is asked again when the backlog is empty."""
    log = MemoryLog()
    reader, mirror = make(log)
    actor = FakeActor()
    for _ in range(5):
        actor.send(log)
    for polls in range(1, 6):
        assert reader.poll(budget_s=0.0) > 0
        assert mirror.end == 4 * polls
    assert reader.poll(budget_s=0.0) == 0
    actor.send(log)
    assert reader.poll(budget_s=10.0) > 0
    assert not reader.ledger.totals.refused


def test_budget_counts_what_is_taken_not_what_is_left() -> None:
    """A trim between two polls must not trim what still waits in the backlog, nor confuse the cursor."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    for _ in range(3):
        actor.send(log)
    reader.poll(budget_s=0.0)
    assert reader.ledger.slots[0].cursor == ChunkId(1, 1)
    reader.trim(1 << 30)
    again, _ = make(log)
    assert again.poll() > 0
    assert again.ledger.totals.chunks == 3


def test_trim_follows_the_mirror() -> None:
    """The log keeps exactly the chunks of which the mirror still holds a row, per slot; a new reader finds those."""
    log = MemoryLog()
    reader, mirror = make(log, slots=2, capacity=17)
    actors = [FakeActor(0), FakeActor(1)]
    sent: list[Chunk] = []
    for step in range(12):
        sent.append(actors[step % 3 == 2].send(log))
        reader.poll()
        reader.trim(1 << 30)
        alive = {(chunk.slot, chunk_id(chunk)) for chunk in sent[-5:]}  # 17 rows reach into the fifth by one
        held = {(entry.slot, entry.id) for entry in log.read({0: ChunkId(), 1: ChunkId()}, 1 << 30)}
        assert held == alive
    assert mirror.rows == 17


def test_slot_of_which_nothing_is_held_is_trimmed_to_empty() -> None:
    """A slot that left leaves no chunks in the server; its last id stays known."""
    log = MemoryLog()
    reader, _ = make(log, slots=2, capacity=8)
    FakeActor(0).send(log)
    busy = FakeActor(1)
    for _ in range(3):
        busy.send(log)
        reader.poll()
    reader.trim(1 << 30)
    assert log.read({0: ChunkId()}, 1 << 30) == []
    assert log.last_id(0) == ChunkId(1, 1)


def test_trim_never_drops_what_was_not_read() -> None:
    """Also behind a bad chunk, which the mirror does not hold."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    chunk = actor.chunk()
    append(log, chunk, spoilt(chunk))
    reader.poll()
    actor.send(log)
    reader.trim(1 << 30)
    assert [entry.id.seq for entry in log.read({0: ChunkId()}, 1 << 30)] == [2]
    assert reader.poll() > 0


def test_trim_that_failed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was away for a moment must not keep the chunks for ever."""
    log = MemoryLog()
    reader, _ = make(log, capacity=8)
    actor = FakeActor()
    for _ in range(4):
        actor.send(log)
    reader.poll()
    with monkeypatch.context() as away:
        away.setattr(log, "trim", lambda fence, oldest: (_ for _ in ()).throw(Unavailable("away")))
        with pytest.raises(Unavailable):
            reader.trim(1 << 30)
    reader.trim(1 << 30)
    assert [entry.id.seq for entry in log.read({0: ChunkId()}, 1 << 30)] == [3, 4]


def test_trim_asks_the_log_only_where_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called after every ingest, it must not cost a round trip each time."""
    log = MemoryLog()
    reader, _ = make(log, slots=2, capacity=8)
    asked: list[Mapping[int, ChunkId]] = []
    monkeypatch.setattr(log, "trim", lambda fence, oldest: asked.append(oldest))
    reader.trim(1 << 30)
    assert asked == []
    actor = FakeActor()
    for _ in range(3):
        actor.send(log)
    reader.poll()
    reader.trim(1 << 30)
    reader.trim(1 << 30)
    assert asked == [{0: ChunkId(1, 2)}]


def test_read_that_failed_moves_nothing() -> None:
    """Unavailable goes to the caller; the next poll goes on where this one would have."""
    log = MemoryLog()
    reader, mirror = make(log)
    FakeActor().send(log)
    working, log.read = log.read, lambda cursors, max_bytes: (_ for _ in ()).throw(Unavailable("away"))  # type: ignore
    with pytest.raises(Unavailable):
        reader.poll()
    log.read = working  # type: ignore[method-assign]
    assert reader.poll() > 0
    assert mirror.end == 4


@pytest.mark.parametrize("what", ["restart", "gap", "other lanes"])
def test_lanes_break_where_the_next_chunk_is_not_the_next(what: str) -> None:
    """No transition reaches from one side of a break to the other; the last row before it is only bootstrapped from."""
    log = MemoryLog()
    reader, mirror = make(log)
    actor = FakeActor(p_end=0.0)
    actor.send(log, 3)  # rows 0, 1, 2
    if what == "restart":
        actor.restart()
        actor.send(log, 3)
    elif what == "gap":
        actor.chunk(1)
        actor.send(log, 3)
    else:
        wide = actor.chunk(4)
        wide = replace(wide, obs=wide.obs[:3])
        append(log, replace(wide, **{
            name: getattr(wide, name)[:4].reshape(2, 2) for name in ("action", "reward", "q_taken", "q_max", "flags")
        }, obs=np.arange(3, 7, dtype=np.float32).reshape(2, 2, 1)))  # fmt: skip
    reader.poll()
    ids = np.arange(mirror.start, mirror.end)
    batch = mirror.gather(ids[mirror.sampleable(ids)])
    pairs = set(zip(batch.s_tm1.ravel().astype(int).tolist(), batch.s_t.ravel().astype(int).tolist(), strict=True))
    after = {"restart": {(3, 4), (4, 5)}, "gap": {(4, 5), (5, 6)}, "other lanes": {(3, 5), (4, 6)}}
    assert pairs == {(0, 1), (1, 2)} | after[what]


def test_counters_go_on_over_incarnations() -> None:
    """A restart adds to what its slot did before; two slots are summed."""
    log = MemoryLog()
    reader, _ = make(log, slots=2)
    actor, other = FakeActor(0), FakeActor(1)
    expected = Counters()
    for _ in range(3):
        actor.send(log)
        expected = expected.plus(actor.send(log).counters)
        actor.restart()
    expected = expected.plus(other.send(log).counters)
    reader.poll()
    assert reader.ledger.counters() == expected
    assert expected.rows == 28


def test_reward_scale_is_for_training_only() -> None:
    """The mirror's rewards are scaled; the chunk's own are not touched (it may be shared)."""
    log = MemoryLog()
    reader, mirror = make(log, reward_scale=0.5)
    chunk = FakeActor(p_end=0.0).send(log)
    reader.poll()
    np.testing.assert_allclose(mirror.gather(np.arange(3)).r_t, 0.5 * chunk.reward[:3, 0], rtol=1e-6)


def test_rewards_are_clipped_to_their_signs_for_training_only() -> None:
    """Before the scale; the chunk's returns stay the environment's own."""
    log, mirror = MemoryLog(), Mirror(SCHEMA, 1000)
    reader = reader_on(log, CODEC, mirror, n=1, gamma=0.9, reward_scale=0.5, reward_clip=True)
    reader.follow([0])
    chunk = FakeActor(p_end=0.0).send(log)
    reader.poll()
    np.testing.assert_allclose(mirror.gather(np.arange(3)).r_t, 0.5 * np.sign(chunk.reward[:3, 0]))
    assert reader.ledger.counters() == chunk.counters


def test_only_followed_slots_are_read() -> None:
    """Following later starts at the slot's first chunk; following twice changes nothing."""
    log = MemoryLog()
    reader, mirror = make(log, slots=1)
    FakeActor(1).send(log)
    assert reader.poll() == 0
    reader.follow([0, 1])
    reader.poll()
    reader.follow([1])
    assert reader.poll() == 0
    assert mirror.end == 4


def test_reader_uses_the_codecs_bound() -> None:
    """A chunk above max_rows is refused although the mirror could hold it."""
    log = MemoryLog()
    mirror = Mirror(SCHEMA, 1000)
    reader = reader_on(log, Codec(SCHEMA, RUN, max_rows=3), mirror, n=1, gamma=0.9)
    reader.follow([0])
    FakeActor().send(log)
    reader.poll()
    assert reader.ledger.totals.refused == {"size": 1}


def test_the_books_of_evicted_chunks_go_also_without_a_trim() -> None:
    """Whoever attaches never trims: its books must not grow for ever."""
    log = MemoryLog()
    reader, mirror = make(log, capacity=20)
    actor = FakeActor()
    for _ in range(50):
        actor.send(log)
        reader.poll()
        assert len(reader.buffer._stored) <= 6
    assert mirror.start == 180


def test_each_slot_has_totals_of_its_own() -> None:
    """Taken, refused and lost; together they are the reader's."""
    log = MemoryLog()
    reader, _ = make(log, slots=3)
    actors = [FakeActor(slot) for slot in range(3)]
    for actor in actors[:2]:
        actor.send(log)
    for _ in range(2):
        bad = actors[1].chunk()
        append(log, bad, spoilt(bad))
    actors[1].send(log)
    actors[2].chunk()
    actors[2].send(log)
    reader.drain()
    totals = [books.totals for books in reader.ledger.slots.values()]
    assert [dict(each.refused) for each in totals] == [{}, {"crc": 2}, {}]
    assert [dict(each.rows_lost) for each in totals] == [{}, {"refused": 8}, {"gap": 4}]
    assert [(each.chunks, each.rows) for each in totals] == [(1, 4), (2, 8), (1, 4)]
    for name in ("chunks", "rows", "env_steps", "bytes"):
        assert sum(getattr(each, name) for each in totals) == getattr(reader.ledger.totals, name)
    assert reader.ledger.totals.refused == {"crc": 2}
    assert reader.ledger.totals.rows_lost == {"refused": 8, "gap": 4}


# -- what actors that died had made


def died_of(actor: FakeActor) -> dict[int, dict[int, int]]:
    """What a supervisor tells of an actor whose last heartbeat was after its newest chunk."""
    return {actor.slot: {actor._incarnation: actor._counters.rows}}


@pytest.mark.parametrize(
    ("told", "lost"),
    [({1: 14}, {"tail": 6}), ({1: 8}, {}), ({1: 4}, {}), ({}, {}), ({1: 14, 2: 3}, {"tail": 9}), ({2: 3}, {"tail": 3})],
    ids=[
        "two chunks more",
        "all stored",
        "older than the death",
        "never heard of",
        "two died",
        "the second of two",
    ],
)
def test_what_a_dead_actor_had_told_and_nobody_stored_is_a_tail(told: dict[int, int], lost: dict[str, int]) -> None:
    """Incarnation 1 sent 8 rows; it is booked when the next one's first chunk is taken, and once."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.send(log)
    actor.send(log)
    reader.poll()
    actor.restart()
    actor.restart()
    for _ in range(2):
        reader.ledger.record_deaths({0: told})
        reader.ledger.check()
    assert reader.ledger.totals.rows_lost == {}
    for _ in range(2):
        actor.send(log)
        reader.ledger.record_deaths({0: told})
        reader.poll()
        reader.ledger.check()
        assert reader.ledger.totals.rows_lost == reader.ledger.slots[0].totals.rows_lost == lost
    assert reader.ledger.totals.rows == 16


def test_a_tail_that_is_told_late_is_booked_all_the_same() -> None:
    """The learner was frozen and found the next incarnation's chunk before it was told; then of slots that it has."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.send(log)
    actor.chunk(5)
    died = died_of(actor)
    actor.restart()
    actor.send(log)
    reader.poll()
    assert reader.ledger.totals.rows_lost == {}
    for _ in range(2):
        reader.ledger.record_deaths({**died, 7: {1: 1000}})
        reader.ledger.check()
        assert reader.ledger.totals.rows_lost == {"tail": 5}
    assert reader.ledger.readings() == {0: (2, 4 + 5 + 4)}


def test_what_an_earlier_learner_had_read_of_a_dead_actor_is_not_counted_twice() -> None:
    """It read 20 rows of two incarnations, of which the checkpoint has 4; 24 were made."""
    log = MemoryLog()
    reader, _ = make(log)
    actor = FakeActor()
    actor.send(log)
    reader.poll()
    reader.ledger.record_earlier({0: Reading(2, 20)})
    reader.ledger.record_deaths({0: {1: 12, 2: 12}})
    actor.restart()
    actor.restart()
    actor.send(log)
    reader.poll()
    reader.ledger.record_deaths({0: {1: 12, 2: 12}})
    reader.ledger.check()
    assert reader.ledger.totals.rows_lost == {"rollback": 16, "tail": 4}


@pytest.mark.parametrize("unread", [False, True], ids=["all was read", "the log has more"])
def test_the_books_of_an_actor_that_died_last_are_ended_with_the_run(unread: bool) -> None:
    """Nobody comes after it; where the log has more of it than was read, it may yet be."""
    log = MemoryLog()
    reader, _ = make(log, slots=2)
    actor, other = FakeActor(0), FakeActor(1)
    actor.send(log)
    other.send(log)
    reader.poll()
    if unread:
        actor.send(log)
    actor.chunk(3)
    reader.ledger.record_deaths(died_of(actor))
    for _ in range(2):
        reader.ledger.end_dead(log.last_id)
        reader.ledger.record_deaths(died_of(actor))
        reader.ledger.check()
        assert reader.ledger.totals.rows_lost == ({} if unread else {"tail": 3})
    actor.restart()
    actor.send(log)
    other.send(log)
    reader.poll()
    reader.ledger.check()
    assert reader.ledger.totals.rows_lost == {"tail": 3}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(fates=st.lists(st.sampled_from(FATES), max_size=25), delays=st.lists(st.integers(0, 2), min_size=25))
def test_all_that_dead_actors_had_told_is_read_or_lost(fates: list[str], delays: list[int]) -> None:
    """Whenever each is told of before the next one dies: the law is exact over all incarnations but the newest, to the
    row."""
    log = MemoryLog()
    reader, _ = make(log)
    actor, died = FakeActor(), dict[int, int]()
    made = wait = 0
    for fate, delay in zip(fates, delays, strict=False):
        if fate == "restart":
            reader.ledger.record_deaths({0: died})
            died[actor._incarnation] = actor._counters.rows
            wait = delay
            made += actor._counters.rows
            actor.restart()
        chunk = actor.chunk(3)
        if fate != "lost":
            append(log, chunk, spoilt(chunk) if fate == "spoilt" else None)
        if wait == 0:
            reader.ledger.record_deaths({0: died})
        wait = max(0, wait - 1)
        reader.poll()
        reader.ledger.check()
    reader.ledger.record_deaths({0: died})
    actor.send(log)
    reader.poll()
    assert reader.ledger.slots[0].past.rows == made
    assert reader.ledger.totals.rows + reader.ledger.totals.rows_lost.total() == made + actor._counters.rows
