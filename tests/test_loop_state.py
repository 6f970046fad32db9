"""A learner that goes on from a checkpoint does what the one that wrote it would have done, to the bit where the rows
are its own, and with the same rows where the log gives them back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from chunk_makers import RUN, SCHEMA, FakeActor, append
from sequence_makers import SCHEMA as RECURRENT
from sequence_makers import recurrent
from spoilt_checkpoints import array, put, rewrite, value, without
from waiting import until

from learner.checkpoint import Checkpointer, CheckpointError, Found, names, newest, newest_policy
from learner.config import AnnealConfig, CheckpointConfig, LearnerConfig
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from learner.weights import unpack, version_count
from replay.chunk import Chunk
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import FENCE_SHIFT, ChunkId, Entry, Unavailable
from replay.chunk_log.sharded_log import ShardedLog
from replay.config import ReplayConfig
from replay.metrics import flat
from replay.samplers.prioritised import PrioritisedSampler

REPLAY = {"capacity_rows": 300, "min_rows": 40, "samples_per_insert": 4.0}


class Made(NamedTuple):
    loop: LearnerLoop
    log: MemoryLog


def make(
    folder: Path, log: MemoryLog, *, fence: int = 1, rows: bool = True, n_step: int = 3, sharded: bool = False,
    anneal: AnnealConfig | None = None, core: bool = False, **replay: Any,
) -> Made:  # fmt: skip
    """A loop on ``log``, from the newest checkpoint in ``folder`` where it is not the first; ``sharded``: as in a
    run, where the learner reads by a log of several servers, also where there is one; ``core``: a recurrent one."""
    network = NetworkConfig(hidden=(4,), core="lstm", core_size=1) if core else NetworkConfig(hidden=(4,))
    schema = RECURRENT if core else SCHEMA
    learner = LearnerConfig(
        network=network, batch=2 if core else 8, device="cpu", n_step=n_step, target_tau=0.1, average_tau=0.01,
        target_period_updates=3, publish_every_updates=7, anneal=anneal or AnnealConfig(),
    )  # fmt: skip
    checkpointer = Checkpointer(folder, CheckpointConfig(), with_rows=rows)
    config = ReplayConfig(**{**REPLAY, **replay})

    def build(found: Found | None) -> LearnerLoop:
        return LearnerLoop(
            RUN, ShardedLog([log]) if sharded else log, Publisher(log, fence), schema, config, learner, fence=fence,
            seed=0, checkpointer=checkpointer, found=found,
        )  # fmt: skip

    loop = checkpointer.build_from_newest(build) if fence > 1 else build(None)
    loop.expect([0, 1], 8)
    return Made(loop, log)


def copy_of(log: MemoryLog) -> MemoryLog:
    """What a server still has when the next learner comes."""
    copy = MemoryLog()
    copy.take_lease(1)
    for entry in log.read({0: ChunkId(), 1: ChunkId()}, 1 << 30):
        copy.append(entry.slot, entry.id, entry.data)
    return copy


class Actors:
    """Two actors, of a network with a recurrent ``core`` perhaps; what they send goes to every log."""

    def __init__(self, core: bool = False) -> None:
        self._core, numbers = core, iter(range(1, 1 << 20))
        self.actors = [FakeActor(slot, lanes=2, p_end=0.1, numbers=numbers) for slot in (0, 1)]

    def send(self, *logs: MemoryLog) -> None:
        for actor in self.actors:
            chunk: Chunk = recurrent(actor.chunk()) if self._core else actor.chunk()
            for log in logs:
                append(log, chunk, schema=RECURRENT if self._core else SCHEMA)


def assert_equal(one: LearnerLoop, other: LearnerLoop) -> None:
    """Weights, moments, rows, priorities, books, random numbers and counters, bit for bit; not the fence, nor times."""
    states = [loop.state() for loop in (one, other)]
    assert states[0].keys() == states[1].keys()
    for part in states[0]:
        values = [{name: each for name, each in state[part].values.items() if name != "seconds"} for state in states]
        assert values[0] == values[1], part
        assert states[0][part].arrays.keys() == states[1][part].arrays.keys()
        for name, column in states[0][part].arrays.items():
            np.testing.assert_array_equal(column, states[1][part].arrays[name], f"{part}.{name}")


def test_a_checkpoint_has_the_policy_that_would_be_evaluated(tmp_path: Path) -> None:
    actors, one = Actors(), make(tmp_path, MemoryLog())
    for _ in range(4):
        actors.send(one.log)
        while one.loop.cycle():
            pass
    one.loop.checkpoint(wait=True)
    (arrays, name), (_, candidate) = newest_policy(tmp_path), unpack(one.loop.candidate())
    assert name.updates == one.loop.learner.updates > 0
    assert arrays.keys() == candidate.keys()
    for parameter, weights in candidate.items():
        np.testing.assert_array_equal(arrays[parameter], weights)
        assert not np.array_equal(weights, one.loop.learner.online.state_dict()[parameter].numpy())


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("rounds", [1, 4, 30])
@pytest.mark.parametrize("storage", ["ram", "device"])
def test_it_goes_on_to_the_bit(tmp_path: Path, sampler: str, rounds: int, storage: str) -> None:
    """Before learning began, while the mirror fills, and when the ring has turned over several times."""
    goes_on_to_the_bit(tmp_path, rounds, sampler=sampler, storage=storage)


def test_an_annealed_horizon_goes_on_to_the_bit(tmp_path: Path) -> None:
    """From the middle of it: open windows are of its greatest length."""
    one = goes_on_to_the_bit(tmp_path, 6, anneal=AnnealConfig(updates=100, n_step=9, gamma=0.5))
    discounts = one.buffer.mirror.gather(np.flatnonzero(one.buffer.mirror._sampleable)).discount_t
    assert len(set(discounts.tolist())) > 10


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("rounds", [4, 30])
def test_sequences_and_their_stored_states_go_on_to_the_bit(tmp_path: Path, sampler: str, rounds: int) -> None:
    """From the middle of lanes' pieces, and of sequences that are cut later."""
    sequences = {"burn_in": 2, "trained": 6, "overlap": 2}
    one = goes_on_to_the_bit(tmp_path, rounds, core=True, sampler=sampler, sequences=sequences)
    state = one.buffer.mirror.state()
    assert np.abs(state.arrays["core_states"]).max() > 0
    assert len(state.arrays["core_rows"]) > 20


def goes_on_to_the_bit(tmp_path: Path, rounds: int, **options: Any) -> LearnerLoop:
    """Returns the loop that was never stopped."""
    actors, one = Actors(options.get("core", False)), make(tmp_path, MemoryLog(), **options)
    for _ in range(rounds):
        actors.send(one.log)
        while one.loop.cycle():
            one.loop.broadcaster.publish_if_due()
    one.loop.checkpoint(wait=True)
    log = copy_of(one.log)
    other = make(tmp_path, log, fence=2, **options)
    one.loop.broadcaster.publish()  # as the other did at its start
    assert_equal(one.loop, other.loop)
    for _ in range(20):
        actors.send(one.log, log)
        for loop in (one.loop, other.loop):
            while loop.cycle():
                loop.broadcaster.publish_if_due()
    assert one.loop.learner.updates > 100
    assert_equal(one.loop, other.loop)
    headers = [each.status(0).weights for each in (one.log, log)]
    assert headers[0] is not None
    assert headers[1] is not None
    assert version_count(headers[0].version) == version_count(headers[1].version)
    assert headers[1].version >> FENCE_SHIFT == 2
    assert headers[0].crc == headers[1].crc
    return one.loop


def transitions(loop: LearnerLoop) -> dict[int, tuple[float, ...]]:
    """Every sampleable row by its observation's number: action, return, discount, the number it bootstraps from and,
    where priorities are kept, its own."""
    rows = np.arange(loop.buffer.mirror.start, loop.buffer.mirror.end)
    rows = rows[loop.buffer.mirror.sampleable(rows)]
    columns = [np.asarray(column).reshape(len(rows)) for column in loop.buffer.mirror.gather(rows)]
    if isinstance(loop.buffer.sampler, PrioritisedSampler):
        columns.append(loop.buffer.sampler._tree.weights[rows % loop.buffer.mirror.capacity_rows])
    return {int(row[0]): tuple(row[1:]) for row in zip(*(column.tolist() for column in columns), strict=True)}


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("rounds", [4, 15])
def test_the_log_gives_the_rows_back(tmp_path: Path, sampler: str, rounds: int) -> None:
    """Without rows in the checkpoint: the same transitions and priorities, whatever order the slots come in, the lanes
    go on, and nothing counts as inserted a second time. 15 rounds are less than the mirror holds."""
    actors, one = Actors(), make(tmp_path, MemoryLog(), sampler=sampler, rows=False)
    for _ in range(rounds):
        actors.send(one.log)
        while one.loop.cycle():
            pass
    one.loop.checkpoint(wait=True)
    log = copy_of(one.log)
    other = make(tmp_path, log, fence=2, sampler=sampler, rows=False)
    assert transitions(one.loop) == transitions(other.loop)
    assert other.loop.ingest.limiter == one.loop.ingest.limiter
    before = other.loop.ledger.totals.env_steps
    assert other.loop.cycle() == 0
    assert other.loop.ledger.totals.env_steps == before == one.loop.ledger.totals.env_steps
    for _ in range(3):
        actors.send(one.log, log)
        for loop in (one.loop, other.loop):
            loop.ingest.reader.poll()
    assert transitions(other.loop).keys() == transitions(one.loop).keys()
    assert other.loop.ledger.totals == one.loop.ledger.totals


class Away(MemoryLog):
    """A server that does not answer the first reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = 0

    def read(self, cursors: Mapping[int, ChunkId], max_bytes: int) -> list[Entry]:
        if self.fails > 0:
            self.fails -= 1
            raise Unavailable("away")
        return super().read(cursors, max_bytes)

    def description(self) -> bytes | None:
        if self.fails > 0:
            raise Unavailable("away")
        return super().description()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_server_that_is_away_while_the_replay_is_read_again_is_waited_for(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not read then the next trim would delete. The log of several servers says nothing by itself."""
    actors, one = Actors(), make(tmp_path, MemoryLog(), rows=False)
    for _ in range(4):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    log = Away()
    log.restore(one.log.state())
    monkeypatch.setattr("replay.chunk_log.sharded_log.PAUSE_S", 0.05)
    log.fails = 2
    other = make(tmp_path, log, fence=2, rows=False, sharded=sharded)
    assert log.fails == 0
    assert transitions(one.loop) == transitions(other.loop)


def test_a_server_that_stays_away_is_told_or_ends_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actors, one = Actors(), make(tmp_path, MemoryLog(), rows=False)
    for _ in range(4):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    monkeypatch.setattr("replay.refill.REFILL_WAIT_S", 0.0)
    log = Away()
    log.restore(one.log.state())
    log.fails = 10**9
    with pytest.raises(Unavailable):
        make(tmp_path, log, fence=2, rows=False)
    monkeypatch.setattr(Away, "description", MemoryLog.description)  # another server is there
    told = make(tmp_path, log, fence=2, rows=False).loop.report().notices
    assert any("their rows of replay are not read again" in line for line in told), told


def test_chunks_behind_the_cursors_are_inserts(tmp_path: Path) -> None:
    """What came in after the checkpoint is read again, counted once, and paid for with samples."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    for _ in range(10):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    for _ in range(5):
        actors.send(one.log)
        one.loop.cycle()
    other = make(tmp_path, copy_of(one.log), fence=2)
    assert other.loop.ledger.totals.env_steps < one.loop.ledger.totals.env_steps
    other.loop.cycle()
    assert other.loop.ledger.totals == one.loop.ledger.totals
    assert other.loop.ingest.limiter.inserts == one.loop.ingest.limiter.inserts
    assert other.loop.report().rows_lost == {}


def test_what_the_log_lost_meanwhile_is_counted_as_lost_to_the_resume(tmp_path: Path) -> None:
    """The lanes break there: no window goes over the gap."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    for _ in range(5):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    for _ in range(2):
        actors.send()  # to a server that died
    log = copy_of(one.log)
    actors.send(log)
    other = make(tmp_path, log, fence=2)
    other.loop.cycle()
    assert other.loop.report().rows_lost == {"resume": 2 * 2 * 8}
    for books in other.loop.ledger.slots.values():
        assert books.rows_read + books.rows_lost == books.counters.rows


def read_on(loop: LearnerLoop, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work as a run's learner does until so many rows were read, and are in the journal."""
    for name in ("TRIM_EVERY_S", "DESCRIBE_EVERY_S"):
        monkeypatch.setattr(f"learner.log_upkeep.{name}", 0.0)

    def all_read() -> bool:
        loop.train(0.01)
        return loop.ledger.totals.rows == rows

    until(all_read, f"{rows} rows")
    loop.train(0.01)


def test_rows_that_a_killed_learner_had_read_and_the_log_has_no_more_are_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed driver takes its server with it: what was read after the checkpoint is in nothing that goes on. It is
    counted when the slot's next incarnation comes, by each slot, through another killed learner, and once."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    for _ in range(3):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    for _ in range(5):
        actors.send(one.log)
    read_on(one.loop, 8 * 16, monkeypatch)
    two = make(tmp_path, MemoryLog(), fence=2)
    two.loop.checkpoint(wait=True)
    assert two.loop.report().rows_lost == {}
    three = make(tmp_path, MemoryLog(), fence=3)
    for expected in (0, 5 * 16):
        assert sum(three.loop.report().rows_lost.values()) == expected
        for actor in actors.actors:
            actor.restart()
        actors.send(three.log)
        three.loop.cycle()
    assert three.loop.report().rows_lost == {"rollback": 5 * 16}
    assert [books.totals.rows_lost["rollback"] for books in three.loop.ledger.slots.values()] == [40, 40]
    assert three.loop.ledger.totals.rows == (3 + 2) * 16


def test_what_was_refused_is_not_taken_from_the_log_by_a_refill(tmp_path: Path) -> None:
    """Chunks that decode, and were refused for what came before them or for the mirror's size, are refused for ever."""
    actors, one = Actors(), make(tmp_path, MemoryLog(), rows=False, capacity_rows=100)
    for _ in range(2):
        actors.send(one.log)
    liar, big = actors.actors[0].chunk(), actors.actors[1].chunk(51)
    append(one.log, replace(liar, counters=liar.counters._replace(rows=liar.counters.rows + 1)))
    append(one.log, big)
    actors.send(one.log)
    one.loop.ingest.reader.drain()
    assert one.loop.report().refused == {"counters": 1, "size": 1}
    one.loop.ingest.reader.trim(1 << 30)
    one.loop.checkpoint(wait=True)
    other = make(tmp_path, copy_of(one.log), fence=2, rows=False, capacity_rows=100)
    assert transitions(other.loop) == transitions(one.loop)
    assert other.loop.buffer.mirror.rows == one.loop.buffer.mirror.rows == 3 * 16
    assert other.loop.report().refused == {"counters": 1, "size": 1}


def test_what_the_log_still_has_of_them_is_read_again_and_not_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In part, up to the incarnation's end; the rest of it no header counts any more."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    actors.send(one.log)
    one.loop.cycle()
    one.loop.checkpoint(wait=True)
    log = copy_of(one.log)
    actors.send(one.log, log)
    actors.send(one.log)
    read_on(one.loop, 3 * 16, monkeypatch)
    for actor in actors.actors:
        actor.restart()
    actors.send(log)
    two = make(tmp_path, log, fence=2)
    two.loop.cycle()
    assert two.loop.report().rows_lost == {"rollback": 16}
    assert two.loop.ledger.totals.rows == 3 * 16


@pytest.mark.parametrize("spoil", ["gone", "empty", "garbage", "a pipe", "too much", "negative"])
def test_a_journal_that_is_none_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    """The books are the worse for it, not the run."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    one.loop.checkpoint(wait=True)
    actors.send(one.log)
    read_on(one.loop, 16, monkeypatch)
    (path,) = tmp_path.glob("read-*.json")
    assert len(path.read_bytes()) > 10
    path.unlink()
    texts = {
        "empty": "", "garbage": "[" * 10_000, "too much": '{"0": [1, 9007199254740992]}', "negative": '{"0": [-1, 4]}',
    }  # fmt: skip
    if spoil == "a pipe":
        os.mkfifo(path)
    elif spoil in texts:
        path.write_text(texts[spoil])
    two = make(tmp_path, MemoryLog(), fence=2)
    for actor in actors.actors:
        actor.restart()
    actors.send(two.log)
    two.loop.cycle()
    assert two.loop.report().rows_lost == {}


def test_an_empty_replay_is_filled_before_anything_is_learned_from_it(tmp_path: Path) -> None:
    """The log is gone and the checkpoint had no rows: a thousand updates on the first ten rows would undo the run."""
    actors, one = Actors(), make(tmp_path, MemoryLog(), rows=False)
    for _ in range(10):
        actors.send(one.log)
        while one.loop.cycle():
            pass
    one.loop.checkpoint(wait=True)
    empty = MemoryLog()
    other = make(tmp_path, empty, fence=2, rows=False)
    updates = other.loop.learner.updates
    assert updates == one.loop.learner.updates > 0
    for actor in actors.actors:
        actor.restart()
    actors.send(empty)
    assert other.loop.cycle() == 0, "16 rows, 40 are the least"
    assert "the replay is lost" in " ".join(other.loop.report().notices)
    for _ in range(3):
        actors.send(empty)
    assert other.loop.cycle() > 0
    assert other.loop.learner.updates < updates + 20


def test_counters_go_on(tmp_path: Path) -> None:
    """Of the learner's own doings, too: what was published, waited for, not answered."""
    actors, one = Actors(), make(tmp_path, MemoryLog())
    for _ in range(10):
        actors.send(one.log)
        while one.loop.cycle():
            one.loop.broadcaster.publish_if_due()
    before = flat(one.loop.report().metrics)
    one.loop.checkpoint(wait=True)
    after = flat(make(tmp_path, copy_of(one.log), fence=2).loop.report().metrics)
    assert after["weights_published"] == before["weights_published"] + 1
    for name in ("updates", "env_steps", "actor_env_steps", "actor_episodes", "actor_returns_sum", "chunks", "loss"):
        assert after[name] == before[name], name
    assert after["weight_staleness_versions"] == before["weight_staleness_versions"] + 1


def test_no_checkpoint_is_written_of_what_is_not_finite(tmp_path: Path) -> None:
    """The newest is from before: a run that diverged is resumed from where it was well."""
    one = make(tmp_path, MemoryLog())
    actors = Actors()
    for _ in range(10):
        actors.send(one.log)
        one.loop.cycle()
    one.loop.checkpoint(wait=True)
    one.loop.learner._parameters.data.fill_(float("nan"))
    actors.send(one.log)
    assert one.loop.cycle() > 0
    one.loop.checkpoint(wait=True)
    checkpoints = one.loop.report().metrics.checkpoint
    assert checkpoints is not None
    assert checkpoints.checkpoints == 1
    found = newest(tmp_path)
    assert found is not None
    assert np.isfinite(found.parts["learner"].arrays["online"]).all()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    one = make(tmp_path, MemoryLog())
    one.loop.checkpoint(wait=True)
    found = newest(tmp_path)
    assert isinstance(found, Found)
    log, config = MemoryLog(), LearnerConfig(network=NetworkConfig(hidden=(5,)), device="cpu")
    with pytest.raises(CheckpointError, match="a network of 34 parameters, the checkpoint's has 28"):
        LearnerLoop(RUN, log, Publisher(log, 2), SCHEMA, ReplayConfig(**REPLAY), config, fence=2, seed=0, found=found)


# -- checkpoints that are whole by their digests, and hold what no learner wrote


CHANGES = {
    "updates": (value("learner", "updates", to=-1), "updates is -1, and has to be a whole number from 0"),
    "updates of another type": (value("learner", "updates", to="7"), "updates is '7'"),
    "Adam's steps": (value("learner", "adam_steps", to=[]), r"adam_steps is \[\]"),
    "weights of another shape": (array("learner", "online", lambda old: old[:-1]), "the checkpoint's has 27"),
    "weights of another dtype": (array("learner", "target", lambda old: old.astype("f8")), "target has parameters"),
    "weights that are not finite": (array("learner", "adam_v", put(0, np.nan)), "adam_v has parameters"),
    "no moments": (without("learner", "adam_m"), "there is no 'adam_m'"),
    "no learner": (without("learner"), "there is no 'learner'"),
    "rows": (value("reader", "totals", "rows", to=-5), "rows is -5"),
    "refused": (value("reader", "totals", "refused", to={"crc": 1.5}), "refused.crc is 1.5"),
    "a cursor": (value("reader", "slots", "0", "cursor", to=[1, 1 << 64]), "cursor is 18446744073709551616"),
    "a short cursor": (value("reader", "slots", "1", "taken", to=[1]), "Expected 2 arguments, got 1"),
    "counters": (value("reader", "slots", "0", "counters", to=[1, 2]), "not enough values"),
    "a sum of returns": (value("reader", "slots", "0", "past", to=[0, 0, 0, 0, 1e400, 0]), "past is inf"),
    "books": (value("reader", "slots", "0", "rows_read", to=7), "7 rows read"),
    "slots": (value("reader", "slots", to=[]), "no attribute 'items'"),
    "open windows": (array("assembler", "1.flags", lambda old: old[:, :1]), r"\[3, 2\], and has to be <\w+>\[3, 1\]"),
    "where chunks lie": (array("buffer", "stored", put((0, 3), -9)), "stored has rows that no chunk can have"),
    "the mirror's end": (value("mirror", "end", to=-1), "end is -1"),
    "more rows than there are": (value("mirror", "end", to=299), r"obs is <float32>\[\d+, 1\], and has to be"),
    "no returns": (without("mirror", "r_t"), "there is no 'r_t'"),
    "a return that is no number": (array("mirror", "r_t", put(0, np.nan)), "r_t has values that are not finite"),
    "an action that there is not": (array("mirror", "column.action", put(3, 99)), r"action has values outside 0\.\."),
    "a row that was never there": (array("mirror", "boot", put(0, 1 << 60)), r"boot has values outside -1\.\."),
    "what can be sampled": (array("mirror", "sampleable", put(slice(None), False)), "0 rows can be sampled"),
    "random numbers": (value("sampler", "rng", "state", to={}), r"\(state.json, sampler.safetensors\)"),
    "other random numbers": (value("sampler", "rng", to=7), r"\(state.json, sampler.safetensors\)"),
    "priorities": (array("sampler", "weights", put(0, -1.0)), "weights has values that are no priority"),
    "samples": (value("loop", "limiter", "samples", to=-8), "samples is -8"),
    "the ratio": (value("loop", "limiter", "samples_per_insert", to=None), "samples_per_insert is None"),
    "the newest figures": (value("loop", "figures", to=[1.0]), "missing"),
    "sums": (value("loop", "sums", to={"log_full": -1}), "sums.log_full is -1, .* at least 0"),
    "versions": (value("loop", "published", to=True), "published is True"),
    "no loop": (without("loop"), "there is no 'loop'"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_that_no_learner_wrote_has_the_one_before_loaded(tmp_path: Path, what: str) -> None:
    """Whatever is wrong in whichever part: all is as the older one has it, and the reason is told."""
    change, told = CHANGES[what]
    actors, one = Actors(), make(tmp_path, MemoryLog(), sampler="prioritised")
    for _ in range(2):
        for _ in range(6):
            actors.send(one.log)
            while one.loop.cycle():
                pass
        one.loop.report()
        one.loop.checkpoint(wait=True)
    older = names(tmp_path)[1]
    bad = rewrite(tmp_path, change)
    log = copy_of(one.log)
    other = make(tmp_path, log, fence=2, sampler="prioritised")
    assert other.loop.resumed is not None
    assert (other.loop.resumed.updates, other.loop.resumed.env_steps) == older[1:]
    passed, resumed = other.loop.report().notices[:2]
    assert re.search(rf"^a newer checkpoint is passed over: checkpoint {bad} has a part \w+ .*{told}", passed), passed
    assert resumed.startswith(f"resumed from checkpoint {older}: ")
    other.loop.drain()
    assert other.loop.ledger.totals == one.loop.ledger.totals


def test_where_no_checkpoint_can_be_gone_on_from_each_is_named_and_stays(tmp_path: Path) -> None:
    one = make(tmp_path, MemoryLog())
    one.loop.checkpoint(wait=True)
    bad = rewrite(tmp_path, value("learner", "updates", to=None))
    with pytest.raises(CheckpointError, match=rf"left as they are:\n  checkpoint {bad} has a part learner"):
        make(tmp_path, MemoryLog(), fence=2)
    assert names(tmp_path) == [bad]
