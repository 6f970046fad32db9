"""``replay.attach``: another process sees the learner's rows, follows the run, and leaves no trace on its server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from chunk_makers import CODEC, RUN, SCHEMA, FakeActor, append, chunk_id, reader_on, spoilt
from cli_runs import ROOT
from lending import plenty
from sequence_makers import SCHEMA as SEQUENCES
from sequence_makers import SequenceRecorder, recurrent
from waiting import until

import replay
from deploy.server.acl import acl_rules
from deploy.server.embedded import EmbeddedServer
from learner.config import LearnerConfig
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from replay import attached
from replay.attached import Attached, NotThere, Replaced
from replay.chunk import Chunk, ObsEntry
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, LogError, Unavailable, UnusableServer
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.urls import public_url
from replay.config import ReplayConfig
from replay.description import FORMAT, DescriptionError, RunDescription, SequencesDescription, SlotDescription
from replay.ledger import SlotAccount, Totals
from replay.mirror import Batch, Mirror
from replay.ring import Ring
from replay.sequences import SequenceSpec
from replay.storage import CannotFit

ADMIN = "~* &* +@all"
N_STEP, GAMMA, REWARD_SCALE = 3, 0.9, 0.5


def about(slots: int, capacity_rows: int = 1000, **changes: Any) -> RunDescription:
    """What a learner says of a run with this many slots."""
    fields: dict[str, Any] = {"row_schema": SCHEMA, "n_step": N_STEP, "gamma": GAMMA, "reward_scale": REWARD_SCALE}
    fields |= {"capacity_rows": capacity_rows, "env_steps": 0, "updates": 0}
    return RunDescription(
        **(fields | changes), slots={slot: SlotDescription.of(SlotAccount()) for slot in range(slots)}
    )


@pytest.fixture(scope="module")
def own_server(server_binary: Path) -> Iterator[EmbeddedServer]:
    """A server with the roles of a run, and an administrator who compares."""
    roles = {**acl_rules(RUN), "admin": ADMIN}
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary, roles=roles) as started:
        yield started


@pytest.fixture
def admin(own_server: EmbeddedServer) -> Iterator[Any]:
    """A client that may do anything; the server is empty before and after."""
    with redis.Redis.from_url(own_server.url("admin")) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.fixture
def log(own_server: EmbeddedServer, admin: Any) -> Iterator[RedisLog]:
    """The learner's handle on the run's empty log."""
    assert admin.dbsize() == 0
    with closing(RedisLog(own_server.url("learner"), RUN)) as opened:
        yield opened


def attach(server: EmbeddedServer, capacity_rows: int | None = None) -> Attached:
    """As a user does who may only read."""
    return replay.attach(server.url("reader"), RUN, capacity_rows)


def transitions(mirror: Ring) -> Batch:
    """All that can be sampled, in the order of the observations' numbers."""
    ids = np.arange(mirror.start, mirror.end)
    batch = mirror.gather(ids[mirror.sampleable(ids)])
    order = np.argsort(batch.s_tm1[:, 0])
    return Batch(*(column[order] for column in batch))


def observations(batch: Batch) -> set[int]:
    return set(batch.s_tm1[:, 0].astype(int).tolist())


def boots(chunk: Chunk) -> set[int]:
    return set(chunk.obs.ravel().astype(int).tolist())


def test_it_has_the_learners_transitions(own_server: EmbeddedServer, log: RedisLog) -> None:
    """The same rows, windows, discounts and scaled rewards; and poll says how many env steps came."""
    numbers = iter(range(10_000))
    actors = [FakeActor(slot, lanes=slot + 1, numbers=numbers) for slot in range(3)]
    log.describe(1, about(3).pack())
    mirror = Mirror(SCHEMA, 1000)
    learner = reader_on(log, CODEC, mirror, N_STEP, GAMMA, REWARD_SCALE)
    learner.follow(range(3))
    with attach(own_server) as memory:
        assert memory.poll() == 0
        for _ in range(3):
            sent = [actor.send(log) for actor in actors for _ in range(5)]
            learner.drain()
            assert memory.poll() == sum(chunk.env_steps for chunk in sent)
            assert memory.poll() == 0
            for mine, theirs in zip(transitions(memory.mirror), transitions(mirror), strict=True):
                assert len(mine) > 0
                np.testing.assert_array_equal(mine, theirs)
        batch = memory.sample(500, np.random.default_rng(0))
        again = memory.sample(500, np.random.default_rng(0))
    assert memory.schema == SCHEMA
    assert batch.s_tm1.shape == (500, 1)
    assert observations(batch) <= observations(transitions(mirror))
    assert len(observations(batch)) > 50
    np.testing.assert_array_equal(batch.s_tm1, again.s_tm1)


def test_of_a_recurrent_run_it_has_the_sequences(own_server: EmbeddedServer, log: RedisLog) -> None:
    """Cut as the learner cuts them, with the states that the actor sent."""
    sequences = SequencesDescription(trained=6, burn_in=2, overlap=2)
    actor, recorder = FakeActor(0, 2, p_end=0.05), SequenceRecorder(SequenceSpec(2, 6, 2, N_STEP), N_STEP, GAMMA)
    log.describe(1, about(1, row_schema=SEQUENCES, sequences=sequences, reward_scale=1.0).pack())
    with attach(own_server) as memory:
        for _ in range(10):
            chunk = recurrent(actor.chunk(5))
            append(log, chunk, schema=SEQUENCES)
            recorder.arrive(chunk, broken=False)
        memory.poll()
        expected = {each.name: each for each in recorder.sequences()}
        assert memory.mirror.sampleable_rows == len(expected) > 5
        batch = memory.sample(50, np.random.default_rng(0))
        names = batch.obs[2, :, 0].astype(int).tolist()
        for b, name in enumerate(names):
            recorder.check(expected[name], batch, b)
        assert len(set(names)) > len(expected) / 2
        log.describe(1, about(1, row_schema=SEQUENCES, reward_scale=1.0).pack())
        with pytest.raises(Replaced, match="or sequences now: attach again"):
            memory._refresh()


def test_it_follows_a_horizon_that_changes(
    own_server: EmbeddedServer, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the description says that it is by now."""
    monkeypatch.setattr(attached, "REFRESH_S", 0.0)
    actor, mirror = FakeActor(0, p_end=0.02, numbers=iter(range(1000))), Mirror(SCHEMA, 1000)
    learner = reader_on(log, CODEC, mirror, 5, GAMMA, REWARD_SCALE, longest=5)
    learner.follow([0])
    log.describe(1, about(1, n_step=5, longest_n_step=5).pack())
    with attach(own_server) as memory:
        for n, gamma in ((5, GAMMA), (2, 0.5)):
            log.describe(1, about(1, n_step=n, gamma=gamma, longest_n_step=5).pack())
            learner.buffer.assembler.set_horizon(n, gamma)
            for _ in range(5):
                actor.send(log)
            learner.drain()
            memory.poll()
        for mine, theirs in zip(transitions(memory.mirror), transitions(mirror), strict=True):
            assert len(mine) > 0
            np.testing.assert_array_equal(mine, theirs)
        for discount in (GAMMA**5, 0.25):
            assert np.isclose(transitions(mirror).discount_t, discount).any()


def test_it_writes_nothing_and_needs_no_right_to(own_server: EmbeddedServer, log: RedisLog, admin: Any) -> None:
    """Every key is bit for bit what it was, and the server saw reading commands alone."""
    log.claim("nonce")
    log.publish(1, plenty())
    log.describe(1, about(2).pack())
    actors = [FakeActor(slot) for slot in range(2)]
    for actor in actors * 20:
        actor.send(log)
    admin.persist(log.credit_key)  # its expiry is the only thing that would change by itself

    def everything() -> dict[bytes, Any]:
        return {key: (admin.dump(key), admin.ttl(key)) for key in admin.scan_iter()}

    before = everything()
    assert len(before) == 6
    admin.config_resetstat()
    with attach(own_server, capacity_rows=50) as memory:
        for _ in range(3):
            assert memory.poll() >= 0
            memory._refreshed_s = -1e9
            memory.sample(100)
        memory._reader.trim(0)  # even where somebody asks it to
    seen = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    assert seen <= {"auth", "client|setname", "client|setinfo", "hello", "get", "xread", "config|resetstat", "info"}
    assert {"get", "xread"} <= seen
    assert everything() == before
    with closing(RedisLog(own_server.url("reader"), RUN)) as reader, pytest.raises(UnusableServer):
        reader.describe(1, b"")


def test_it_follows_slots_as_the_description_names_them(
    own_server: EmbeddedServer, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.describe(1, about(1).pack())
    old, new = FakeActor(0), FakeActor(1)
    with attach(own_server) as memory:
        first, second = old.send(log), new.send(log)
        assert memory.poll() == first.env_steps
        log.describe(1, about(2, env_steps=9).pack())
        monkeypatch.setattr(attached, "REFRESH_S", 0.0)
        assert memory.poll() == second.env_steps
        assert memory.description.env_steps == 9


def test_the_description_is_not_read_at_every_poll(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    with attach(own_server) as memory:
        log.describe(1, about(1, env_steps=7).pack())
        memory._refreshed_s = time.monotonic()
        memory.poll()
        assert memory.description.env_steps == 0


def test_refused_and_broken_rows_are_refused_here_too(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    actor = FakeActor()
    good, bad = actor.send(log), actor.chunk()
    append(log, bad, spoilt(bad))
    last = actor.send(log)
    with attach(own_server) as memory:
        assert memory.poll() == good.env_steps + last.env_steps
        assert memory.refused == {"crc": 1}
        assert not boots(bad) & observations(transitions(memory.mirror))


def test_chunks_trimmed_before_it_came_are_simply_not_there(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    actor = FakeActor()
    chunks = [actor.send(log) for _ in range(10)]
    log.trim(1, {0: chunk_id(chunks[6])})
    with attach(own_server) as memory:
        assert memory.poll() == sum(chunk.env_steps for chunk in chunks[6:])
        assert observations(transitions(memory.mirror)) <= set().union(*map(boots, chunks[6:]))


def test_a_small_mirror_has_the_newest_rows_of_all_slots(own_server: EmbeddedServer, log: RedisLog) -> None:
    """Though a page of the log comes slot by slot: 4 slots of 400 rows each in a mirror of 200."""
    numbers = iter(range(10_000))
    actors = [FakeActor(slot, numbers=numbers) for slot in range(4)]
    log.describe(1, about(4, capacity_rows=2000).pack())
    for _ in range(100):
        for actor in actors:
            actor.send(log)
    with attach(own_server, capacity_rows=200) as memory:
        memory.poll()
        ids = np.arange(memory.mirror.start, memory.mirror.end)
        held = memory.mirror.gather(ids).s_tm1[:, 0].astype(int)
    assert memory.mirror.rows == 200
    share = [int(((held // 4) % 4 == slot).sum()) for slot in range(4)]
    assert min(share) >= 30, share
    assert min(held) >= 1600 - 2 * 200


def test_polling_ends_though_actors_write_all_the_time(own_server: EmbeddedServer, log: RedisLog) -> None:
    """One call takes at most what the log of the run may hold."""
    log.describe(1, about(1, capacity_rows=40).pack())
    actor = FakeActor()
    with attach(own_server) as memory:
        streams = memory._reader._log
        read = streams.read

        def read_and_write(cursors: Any, max_bytes: int) -> Any:
            actor.send(log)
            return read(cursors, max_bytes)

        streams.read = read_and_write  # type: ignore[method-assign]
        for _ in range(3):
            before = memory.mirror.end
            memory.poll()
            assert memory.mirror.end - before == 40


def test_slots_on_several_servers_are_read_together(
    server_binary: Path, own_server: EmbeddedServer, log: RedisLog
) -> None:
    """In whichever order they are given, and the description is on one of them; all of them have to be given."""
    roles = {**acl_rules(RUN), "admin": ADMIN}
    with (
        EmbeddedServer(RUN, 64 << 20, binary=server_binary, roles=roles) as second,
        closing(RedisLog(second.url("learner"), RUN)) as other,
    ):
        other.describe(1, about(2).pack())
        numbers = iter(range(100))
        sent = [FakeActor(0, numbers=numbers).send(log), FakeActor(1, numbers=numbers).send(other)]
        for urls in ([own_server, second], [second, own_server]):
            with replay.attach([server.url("reader") for server in urls], RUN) as memory:
                assert memory.poll() == sum(chunk.env_steps for chunk in sent)
                assert memory.mirror.rows == sum(chunk.rows for chunk in sent)
        read = {slot: SlotAccount(totals=Totals(chunks=1)) for slot in range(2)}
        said = RunDescription(
            **about(0).model_dump(exclude={"slots"}),
            slots={slot: SlotDescription.of(books) for slot, books in read.items()},
        )
        other.describe(1, said.pack())
        with replay.attach([own_server.url("reader"), second.url("reader")], RUN) as memory:
            assert memory.poll() > 0
        with pytest.raises(NotThere, match=r"slots 0 of run 'a-run' are not on unix:.*: give all of its servers"):
            replay.attach(second.url("reader"), RUN)


def test_of_several_servers_one_may_be_away(server_binary: Path, own_server: EmbeddedServer, log: RedisLog) -> None:
    """Its slots wait, the others' rows come, and who is away is said; where all are, it is an error."""
    log.describe(1, about(2).pack())
    actors = [FakeActor(slot, p_end=0.0) for slot in range(2)]
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary) as second:
        urls = [second.url("reader"), own_server.url("reader")]
        with closing(RedisLog(second.url("learner"), RUN)) as other, replay.attach(urls, RUN) as memory:
            actors[0].send(log)
            actors[1].send(other)
            assert memory.poll() == 8
            assert not memory.down
            second.stop()
            actors[0].send(log)
            memory._refreshed_s = -1e9
            assert memory.poll() == 4
            assert list(memory.down) == [public_url(urls[0])]
            with replay.attach(urls, RUN) as late:
                assert late.poll() == 8
    with pytest.raises(Unavailable):
        replay.attach([urls[0], urls[0]], RUN)


# -- what goes wrong


def test_a_run_that_is_not_there(own_server: EmbeddedServer, log: RedisLog) -> None:
    """Another name, or no description yet; the message has the server and not its password."""
    log.append(0, ChunkId(1, 1), b"x")
    with pytest.raises(NotThere, match=f"no run '{RUN}' describes itself") as caught:
        attach(own_server)
    url = own_server.url("reader")
    password = url.split(":")[2].partition("@")[0]
    assert password in url
    assert password not in str(caught.value)
    assert "server.sock" in str(caught.value)
    with pytest.raises(UnusableServer):
        replay.attach(url, "another")


def test_a_description_that_cannot_be_read(own_server: EmbeddedServer, log: RedisLog) -> None:
    newer = about(1).pack().replace(b'"format":%d' % FORMAT, b'"format":%d' % (FORMAT + 1))
    for data, message in (
        (newer, f"in format {FORMAT + 1}, this qherd reads {FORMAT}"),
        (b"\xff", "damaged"),
        (b"[]", "format None"),
        (about(1).pack().replace(b"float32", b"object1"), "dtype 'object1' cannot be stored"),
        (about(1).pack().replace(b'"n_step":3', b'"n_step":-3'), "n_step"),
        (about(1).pack().replace(b'"n_step":3', b'"n_step":18446744073709551615'), "n_step"),
        (about(1, n_step=2, longest_n_step=5).pack().replace(b'"n_step":2', b'"n_step":6'), "longest_n_step"),
        (about(1).pack().replace(b'"capacity_rows":1000', b'"capacity_rows":9223372036854775808'), "capacity_rows"),
        (about(1).pack().replace(b'"reward_scale":0.5', b'"reward_scale":Infinity'), "reward_scale"),
        (about(1).pack().replace(b'"chunks":0', b'"chunks":9223372036854775807'), "chunks"),
        (b"[" * 100_000, "damaged"),
    ):
        log.describe(1, data)
        with pytest.raises(DescriptionError, match=message):
            attach(own_server)


def test_descriptions_come_back_as_they_were() -> None:
    books = SlotAccount(cursor=ChunkId(2, 7), weight_version=5)
    books.totals.refused["crc"] = 2
    said = RunDescription(**about(0).model_dump(exclude={"slots"}), slots={3: SlotDescription.of(books)})
    read = RunDescription.unpack(said.pack())
    assert read == said
    assert (read.slots[3].cursor, read.slots[3].incarnation, read.slots[3].refused) == ("2-7", 2, {"crc": 2})
    assert read.row_schema.digest == SCHEMA.digest
    stacked = replace(SCHEMA, obs_shape=(84, 84), obs_dtype="uint8", stack=4)
    assert RunDescription.unpack(about(1, row_schema=stacked).pack()).row_schema.digest == stacked.digest
    flat = replace(SCHEMA, obs_shape=(11,), entries=(ObsEntry("a", (3, 3), "uint8"), ObsEntry("b", (2,), "float32")))
    packed = about(1, row_schema=flat).pack()
    assert RunDescription.unpack(packed).row_schema == flat
    older = json.loads(packed)  # as it was written before there were entries
    del older["schema"]["entries"]
    assert RunDescription.unpack(json.dumps(older).encode()).row_schema == replace(flat, entries=())
    older["schema"]["entries"] = [{"name": "a", "shape": [3, 3], "dtype": "uint8"}]
    with pytest.raises(DescriptionError, match=r"damaged: schema.*have entries of 9 numbers in all"):
        RunDescription.unpack(json.dumps(older).encode())


@pytest.mark.parametrize("change", ["name", "gamma"])
def test_a_run_that_became_another_is_not_mixed_in(
    own_server: EmbeddedServer, log: RedisLog, admin: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(attached, "REFRESH_S", 0.0)
    log.claim("one")
    log.describe(1, about(1).pack())
    with attach(own_server) as memory:
        memory.poll()
        if change == "name":
            admin.delete(log.meta_key)
            log.claim("two")
        else:
            log.describe(1, about(1, gamma=0.5).pack())
        with pytest.raises(Replaced, match="attach again"):
            memory.poll()


def test_a_mirror_smaller_than_a_chunk_says_so(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    FakeActor().send(log, time_steps=8)
    with attach(own_server, capacity_rows=5) as memory, pytest.raises(ValueError, match="capacity_rows=5 cannot hold"):
        memory.poll()


def test_a_mirror_bigger_than_memory_is_refused_before_it_is_made(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1, capacity_rows=10**12).pack())
    with pytest.raises(CannotFit, match="give a smaller capacity_rows"):
        attach(own_server)
    with attach(own_server, capacity_rows=10) as memory:
        assert memory.mirror.capacity_rows == 10


def test_sampling_nothing_says_so(own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    with attach(own_server) as memory, pytest.raises(ValueError, match="can be sampled yet"):
        memory.sample(1)


def test_a_server_that_died_and_came_back_empty(server_binary: Path) -> None:
    """A temporary error meanwhile; the mirror stays, and what is written afterwards arrives."""
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary) as server:
        log, actor = RedisLog(server.url("learner"), RUN), FakeActor(p_end=0.0)
        log.describe(1, about(1).pack())
        actor.send(log)
        with closing(log), attach(server) as memory:
            assert memory.poll() == 4
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: not server.alive(), "the server's end", 5)
            with pytest.raises(Unavailable) as caught:
                memory.poll()
            assert caught.value.temporary
            server.start()
            memory._refreshed_s = -1e9
            assert memory.poll() == 0
            assert memory.mirror.rows == 4
            actor.send(log)
            assert memory.poll() == 4


# -- the learner's part


def make_loop(log: Any, n_step: int = 2) -> LearnerLoop:
    config = LearnerConfig(batch=4, n_step=n_step, device="cpu", network=NetworkConfig(hidden=(8,)))
    replay_config = ReplayConfig(capacity_rows=500, min_rows=1_00, samples_per_insert=8)
    return LearnerLoop(RUN, log, Publisher(log, 1), SCHEMA, replay_config, config, fence=1, seed=0)


def test_the_learner_describes_its_run_while_it_trains() -> None:
    """At once, before the first chunk; and its figures per slot are those of its reader."""
    log = MemoryLog()
    loop = make_loop(log)
    loop.expect(range(2), 4)
    loop.train(0.01)
    said = RunDescription.unpack(log.description() or b"")
    assert (said.row_schema, said.n_step, said.capacity_rows) == (SCHEMA, 2, 500)
    assert list(said.slots) == [0, 1]
    assert said.slots[1].cursor == "0-0"
    first, actor = FakeActor(0).send(log), FakeActor(1)
    actor.restart()
    bad = actor.chunk()
    append(log, bad, spoilt(bad))
    second = actor.send(log)
    loop.drain()
    said = RunDescription.unpack(log.description() or b"")
    assert said.env_steps == first.env_steps + second.env_steps
    assert said.slots[0].refused == {}
    assert said.slots[1].refused == {"crc": 1}
    assert [(s.rows, s.env_steps, s.chunks) for s in said.slots.values()] == [
        (chunk.rows, chunk.env_steps, 1) for chunk in (first, second)
    ]
    assert (said.slots[1].incarnation, said.slots[1].cursor, said.slots[1].weight_version) == (2, "2-2", 1)
    assert sum(s.bytes for s in said.slots.values()) == loop.ledger.totals.bytes


class NoDescription(MemoryLog):
    """A log that takes no description."""

    def __init__(self, error: LogError) -> None:
        super().__init__()
        self._error = error

    def describe(self, fence: int, description: bytes) -> None:
        raise self._error


@pytest.mark.parametrize("error", [Unavailable("away"), UnusableServer("no right")])
def test_the_learner_lives_on_where_it_cannot_describe_its_run(error: LogError) -> None:
    loop = make_loop(NoDescription(error))
    loop.train(0.01)
    assert loop.report().metrics.replay.log_unavailable == 1


# -- as a user imports it


def test_importing_replay_alone_stays_cheap() -> None:
    """Actors import the package too: numpy, redis, pydantic and torch come only with what is used."""
    program = (
        "import sys, replay\n"
        "heavy = {'numpy', 'redis', 'pydantic', 'torch', 'ray'} & set(sys.modules); assert not heavy, heavy\n"
        "import replay.attached\n"  # a module of that name must not hide the function
        "assert callable(replay.attach) and replay.attach is replay.attached.attach\n"
        "heavy = {'torch', 'ray', 'gymnasium'} & set(sys.modules); assert not heavy, heavy\n"
        "try: replay.nonsense\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "nonsense" in done.stdout


def example() -> str:
    """The example that README shows."""
    (found,) = re.findall(
        r"```python[^\n]*\n((?:(?!```).)*?replay\.attach.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    return str(found)


def test_the_readmes_example_has_five_lines_and_runs(tmp_path: Path, own_server: EmbeddedServer, log: RedisLog) -> None:
    log.describe(1, about(1).pack())
    env_steps = FakeActor().send(log, time_steps=64).env_steps
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    (folder / "replay.url").write_text(own_server.url("reader"))
    code = example()
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 5
    assert "\n".join(lines) in (ROOT / "replay" / "attached.py").read_text().replace("\n    ", "\n")
    program = code.replace("NAME", RUN)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == f"{env_steps} env steps\n"


def test_what_was_interrupted_in_a_chunk_is_attached_again(
    own_server: EmbeddedServer, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a notebook: the mirror has rows whose windows are missing, and gives none of them."""
    log.describe(1, about(1).pack())
    actor = FakeActor()
    actor.send(log)
    with attach(own_server) as memory:
        assert memory.poll() > 0
        actor.send(log)

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(memory.mirror, "add_transitions", interrupted)
            with pytest.raises(KeyboardInterrupt):
                memory.poll()
        for call in (memory.poll, lambda: memory.sample(1)):
            with pytest.raises(RuntimeError, match=r"interrupted half-way .* make a new one"):
                call()
