"""Every part's state with every field filled goes through a checkpoint's real files and comes back equal.

A fresh part's state is mostly zeros and empty tables, which hide what JSON cannot say: so each state is filled first,
and the test demands that it was.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import redis
import torch
from chunk_makers import CODEC, RUN, SCHEMA, FakeActor, append, chunk_id, reader_on, spoilt
from hypothesis import given, settings
from hypothesis import strategies as st
from lending import plenty
from safetensors.numpy import load as load_arrays
from scripted_env import RaisingEnv
from sequence_makers import SCHEMA as SEQUENCES
from sequence_makers import recurrent

from actors.actor_id import ActorId
from actors.builders import build_evaluator
from actors.config import ActorConfig, EnvConfig, EvalConfig
from actors.envs import make_lanes
from actors.lanes import RecordedLane
from actors.policy import make_policy
from actors.rollout import Rollout
from actors.supervision.restarts import Restarts
from learner.checkpoint import ARRAYS, VALUES, Checkpointer, newest, pack
from learner.config import CheckpointConfig, LearnerConfig
from learner.learner import Learner
from learner.loop import LearnerLoop
from learner.metrics import UpdateMetrics
from learner.networks import NetworkConfig, NetworkSpec, parameter_shapes
from learner.progress import Sums
from learner.publisher import Publisher
from learner.weights import pack as pack_weights
from replay.assembler import NStepAssembler
from replay.buffer import ChunkSpan, ReplayBuffer
from replay.chunk import Counters, Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, ChunkLog
from replay.chunk_log.redis_log import RedisLog
from replay.config import ReplayConfig
from replay.ledger import SlotAccount, Totals
from replay.limiter import Limiter
from replay.metrics import flat
from replay.mirror import Mirror
from replay.mixed import MixedBuffer
from replay.nstep import LaneWindows
from replay.reader import Reader
from replay.samplers.prioritised import PrioritisedSampler
from replay.samplers.uniform import UniformSampler
from replay.sequence_assembler import SequenceAssembler
from replay.sequences import SequenceMirror, SequenceSpec
from replay.state import State

ROOT = Path(__file__).parents[1]
TESTED = {
    "Evaluator", "LanePiece", "LaneWindows", "Learner", "LearnerLoop", "Limiter", "MemoryLog", "MixedBuffer",
    "NStepAssembler", "NumpyMlp", "Outbox", "PrioritisedSampler", "Reader", "RecordedLane", "ReplayBuffer",
    "Restarts", "Ring", "Rollout", "Rows", "SequenceAssembler", "SequenceMirror", "Stepper", "TorchPolicy",
    "UniformSampler",
}  # fmt: skip
"""Classes with a state that the tests below fill; a test compares them with those that there are."""
HOW_A_RUN_STANDS = {"RunRecord", "StudyDirectory"}
"""What these call a state is no part of a run."""


def through_a_checkpoint(state: State) -> State:
    """The state as another process reads it, by the files' bytes: without a disk, which has to sync each."""
    files = pack({"part": state})
    arrays = load_arrays(files["part" + ARRAYS]) if state.arrays else {}
    return State(json.loads(files[VALUES])["parts"]["part"], arrays)


def assert_same(one: State, other: State) -> None:
    assert dict(one.values) == dict(other.values)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype, name
        np.testing.assert_array_equal(array, other.arrays[name], name)


def assert_filled(state: State, *but: str) -> None:
    """No value is None, 0, False or empty, at whatever depth, except those under the names ``but``; no array is of
    zeros alone."""

    def look(where: str, value: Any) -> None:
        if where.rpartition(".")[2] in but:
            return
        assert value, f"{where} is {value!r}"
        if isinstance(value, Mapping):
            for name, each in value.items():
                look(f"{where}.{name}", each)

    for name, value in state.values.items():
        look(f".{name}", value)
    for name, array in state.arrays.items():
        assert name in but or array.any(), f"{name} is all zeros"


def test_no_class_with_a_state_is_left_out() -> None:
    """A new one has to be filled and written here as well."""
    found = set()
    for package in ("replay", "learner", "actors", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ClassDef) or any("Protocol" in ast.unparse(base) for base in node.bases):
                    continue
                if any(isinstance(each, ast.FunctionDef) and each.name == "state" for each in node.body):
                    found.add(node.name)
    assert found == TESTED | HOW_A_RUN_STANDS


# -- policies


@pytest.mark.parametrize("encoder", ["mlp", "minatar"])
def test_a_policy_comes_back(encoder: str) -> None:
    """Also the one that acts in torch: the same values from the same weights."""
    spec, schema = NetworkSpec(NetworkConfig(encoder=encoder, hidden=(5,))), Schema((4, 4, 1), "float32", 2)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(spec, schema)
    policy, other = make_policy(spec, schema), make_policy(spec, schema)
    other.load(policy.state())
    assert other.state() == {}, "before the first weights"
    policy.load({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    state = State({}, policy.state())
    assert_filled(state)
    other.load(through_a_checkpoint(state).arrays)
    assert_same(State({}, other.state()), state)
    obs = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(policy(obs, {})[0], other(obs, {})[0])


# -- the reader

COUNT = st.integers(1, 1 << 60)
REASONS = st.dictionaries(st.sampled_from(["crc", "flags", "gap", "resume", "a word"]), COUNT, min_size=1)
IDS = st.builds(ChunkId, COUNT, COUNT)
COUNTERS = st.builds(Counters, COUNT, COUNT, COUNT, COUNT, st.floats(-1e300, 1e300).filter(bool), st.floats(1e-9, 1e15))
TOTALS = st.builds(
    Totals, COUNT, COUNT, COUNT, COUNT, REASONS.map(Counter[str]), REASONS.map(Counter[str])
)  # fmt: skip
SLOTS = st.builds(
    SlotAccount, cursor=IDS, taken=IDS, counters=COUNTERS, past=COUNTERS, rows_read=COUNT, rows_lost=COUNT,
    refused_since=COUNT, weight_version=COUNT, totals=TOTALS,
)  # fmt: skip


def reader_of(log: MemoryLog) -> Reader:
    return reader_on(log, CODEC, Mirror(SCHEMA, 100), n=3, gamma=0.9)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(totals=TOTALS, slots=st.dictionaries(st.integers(0, 1 << 20), SLOTS, min_size=1, max_size=2))
def test_the_readers_books(totals: Totals, slots: dict[int, SlotAccount]) -> None:
    """Whatever they count."""
    log = MemoryLog()
    one = reader_of(log)
    one.follow([0])
    actor = FakeActor(lanes=2)
    for _ in range(2):
        actor.send(log)
    one.poll()
    one.ledger.totals, one.ledger.slots, one._quarantine.kept = totals, slots, 3
    state = one.state()
    assert_filled(state)
    other = reader_of(log)
    other.restore(through_a_checkpoint(state))
    assert_same(other.state(), state)
    assert other.ledger.totals == one.ledger.totals
    assert other.ledger.counters() == one.ledger.counters()
    for slot, books in slots.items():
        for name in vars(books):
            if name not in ("resumed", "checked"):  # of this process
                assert getattr(other.ledger.slots[slot], name) == getattr(books, name), name


def test_what_was_refused_and_lost_is_in_the_next_checkpoint_too(tmp_path: Path) -> None:
    """By reason, of each slot and of all; and what comes next is added."""
    log = MemoryLog()
    loop = learner_loop(log, tmp_path)
    loop.expect([0], 8)
    actor = FakeActor(lanes=2)
    actor.send(log)
    bad = actor.chunk()
    append(log, bad, spoilt(bad))
    log.append(0, ChunkId(1, 3), b"garbage")
    actor.chunk()
    actor.chunk()
    actor.send(log)
    loop.cycle()
    before = loop.report()
    assert (before.refused, before.rows_lost) == ({"crc": 1, "short": 1}, {"gap": 3 * 8})
    for fence in (2, 3):
        loop.checkpoint(wait=True)
        assert flat(loop.report().metrics)["checkpoint_failures"] == 0
        loop = learner_loop(log, tmp_path, fence)
        after = loop.report()
        assert (after.refused, after.rows_lost) == (before.refused, before.rows_lost)
        assert loop.ledger.slots[0].totals.refused == before.refused
    log.append(0, ChunkId(1, 6), b"garbage")
    loop.ingest.reader.poll()
    assert loop.report().refused == {"crc": 1, "short": 2}


@pytest.mark.parametrize("with_rows", [True, False], ids=["its own rows", "the log's rows"])
def test_garbage_and_a_lost_chunk_on_a_server_are_survived(server_url: str, tmp_path: Path, with_rows: bool) -> None:
    """One XADD of whoever has an actor's password, and a chunk that the server forgot: counted, written, and counted
    on by the next learner."""
    with contextlib.closing(RedisLog(server_url, RUN)) as log, redis.Redis.from_url(server_url) as client:
        stream = log.chunks_key(0)
        try:
            loop = learner_loop(log, tmp_path, with_rows=with_rows)
            loop.expect([0], 8)
            actor = FakeActor(lanes=2)
            actor.send(log)
            client.xadd(stream, {"c": b"garbage"}, id="1-2")
            actor.chunk()
            lost = actor.send(log)
            client.xdel(stream, str(chunk_id(lost)))
            actor.send(log)
            loop.drain()
            loop.checkpoint(wait=True)
            counted = ({"short": 1}, {"gap": 2 * 8})
            before = loop.report()
            assert (before.refused, before.rows_lost) == counted
            assert flat(before.metrics)["checkpoint_failures"] == 0
            loop = learner_loop(log, tmp_path, 2, with_rows=with_rows)
            after = loop.report()
            assert (after.refused, after.rows_lost) == counted
            actor.send(log)
            loop.drain()
            assert loop.report().metrics.replay.rows == 3 * 8
            assert loop.buffer.mirror.rows == 3 * 8
        finally:
            client.delete(stream, log.credit_key, log.fence_key, log.weights_key, log.about_key)


# -- the others


def learner_loop(
    log: ChunkLog, folder: Path, fence: int = 1, *, republish: bool = True, with_rows: bool = True
) -> LearnerLoop:
    config = LearnerConfig(network=NetworkConfig(hidden=(4,)), batch=8, device="cpu", average_tau=0.1)
    checkpointer = Checkpointer(folder, CheckpointConfig(), with_rows)
    replay = ReplayConfig(capacity_rows=200, min_rows=16, samples_per_insert=2, sampler="prioritised")
    found = newest(folder) if fence > 1 else None
    return LearnerLoop(
        RUN, log, Publisher(log, fence), SCHEMA, replay, config, fence=fence, seed=0, checkpointer=checkpointer,
        found=found, republish=republish,
    )  # fmt: skip


def test_the_loops(tmp_path: Path) -> None:
    """With metrics, returns, sums of earlier learners and a bound on Q."""
    log = MemoryLog()
    one = learner_loop(log, tmp_path)
    one.expect([0], 8)
    actor = FakeActor(lanes=2, p_end=0.3)
    for _ in range(20):
        chunk = actor.chunk()
        append(log, chunk)
    while one.cycle():
        one.broadcaster.publish()
    progress = one.progress
    progress._reported, progress._exploring_return = Counters(1, 2, 3, 4, 5.5, 6.5), 21.5
    one.upkeep.log_full = one.ingest.outages = 7
    progress._starved_s = 0.25
    one.report()
    assert progress._newest_update is not None
    progress._newest_update = UpdateMetrics(*(0.5 + i for i in range(len(UpdateMetrics._fields))))
    one.phases.seconds = dict.fromkeys(one.phases.seconds, 1.5)
    progress._sums_before = Sums(*[2.0] * len(Sums._fields))
    progress._seconds_before = dict.fromkeys(progress._seconds(), 3.0)
    one.ingest.limiter.carried = 1.25
    state = one.state()["loop"]
    assert_filled(state)
    one.checkpoint(wait=True)
    other = learner_loop(log, tmp_path, fence=2, republish=False)
    values, of_this_process = other.state()["loop"].values, ("seconds", "sums")
    for name in state.values:
        if name not in of_this_process:
            assert values[name] == state.values[name], name
    for name in of_this_process:
        for each, before in state.values[name].items():
            assert values[name][each] >= before > 0, each


def test_the_learners() -> None:
    config = LearnerConfig(network=NetworkConfig(hidden=(4,)), device="cpu")
    one, other = (Learner(config, SCHEMA, torch.device("cpu"), seed) for seed in (1, 2))
    for vector in one._vectors().values():
        vector.detach().copy_(torch.rand(vector.shape) + 1)
    for scalar in one._scalars().values():
        scalar.fill_(3)
    one.updates = 99
    state = one.state()
    assert_filled(state)
    other.restore(through_a_checkpoint(state))
    assert_same(other.state(), state)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(inserts=COUNT, samples=COUNT, carried=st.floats(-1e12, 1e12).filter(bool))
def test_the_limiters(inserts: int, samples: int, carried: float) -> None:
    one, other = (Limiter(4.0, 10, 1000, 8) for _ in range(2))
    one.inserts, one.samples, one.carried = inserts, samples, carried
    state = State(one.state(), {})
    assert_filled(state)
    other.restore(through_a_checkpoint(state).values)
    assert other == one


@pytest.mark.parametrize("stack", [1, 3])
def test_the_mirrors_and_the_samplers(stack: int) -> None:
    """The ring turned over, priorities of the learner, a changed beta and missed updates."""
    schema = Schema(SCHEMA.obs_shape, SCHEMA.obs_dtype, SCHEMA.num_actions, stack)

    def make() -> tuple[Any, Any, Any]:
        mirror = Mirror(schema, 60)
        return (
            mirror,
            PrioritisedSampler(mirror, np.random.default_rng(1), 0.6, 0.4, 100),
            UniformSampler(mirror, np.random.default_rng(2)),
        )

    mirror, prioritised, uniform = make()
    windows, actor = LaneWindows(2, 2, 0.9), FakeActor(lanes=2)
    for _ in range(10):
        chunk = actor.chunk()
        ids = mirror.add(chunk, windows.last_row)
        mirror.add_transitions(windows.extend(chunk.reward, chunk.flags, ids, chunk.q_taken, chunk.q_max))
    choice = prioritised.sample(8, 1, 50)
    prioritised.update(choice.rows, np.linspace(-1, 1, 8).astype(np.float32))
    prioritised.update(np.zeros(1, np.int64), np.ones(1, np.float32))  # evicted
    uniform.sample(8)
    others = make()
    alive = np.arange(mirror.start, mirror.end)
    for part, other in zip((mirror, prioritised, uniform), others, strict=True):
        state = part.state()
        assert_filled(state, "has_uint32", "uinteger")
        if isinstance(other, Mirror):
            other.restore(through_a_checkpoint(state))
        else:
            other.restore(through_a_checkpoint(state), alive, alive)
        assert_same(other.state(), state)
    carried = State({}, windows.state())
    again = LaneWindows(2, 2, 0.9)
    again.restore(through_a_checkpoint(carried).arrays)
    assert_same(State({}, again.state()), carried)


@pytest.mark.parametrize("with_rows", [True, False], ids=["with rows", "without"])
def test_the_buffers(with_rows: bool) -> None:
    """Two slots of other lanes, windows open, some chunks trimmed; without rows, those that the log gives again."""

    def make() -> ReplayBuffer:
        mirror = Mirror(SCHEMA, 60)
        sampler = PrioritisedSampler(mirror, np.random.default_rng(1), 0.6, 0.4, 100)
        return ReplayBuffer(mirror, NStepAssembler(mirror, 3, 0.9), sampler)

    one, other = make(), make()
    numbers = itertools.count()
    actors = [FakeActor(0, 2, p_end=0.0, numbers=numbers), FakeActor(3, 1, p_end=0.0, numbers=numbers)]
    sent = [actor.chunk() for _ in range(10) for actor in actors]
    for chunk in sent:
        one.append(chunk, follows=True)
    one.trim(40)
    sample = one.sample(8, 1, 50)
    one.update_priorities(sample.rows, np.linspace(-1, 1, 8).astype(np.float32))
    one.update_priorities(np.zeros(1, np.int64), np.ones(1, np.float32))  # evicted
    parts = one.state(with_rows)
    for part, state in parts.items():
        if part != "assembler":  # its windows' rows are checked by themselves
            assert_filled(state, "has_uint32", "uinteger")
    assert parts["assembler"].arrays.keys() >= {"0.row", "3.row"}
    assert ("mirror" in parts) == with_rows

    def refill(stored: list[ChunkSpan]) -> tuple[Any, Any]:
        assert stored == list(one._stored)
        assert not with_rows
        before = other.mirror.end
        for each in stored:
            (chunk,) = [chunk for chunk in sent if (chunk.slot, chunk_id(chunk)) == (each.slot, each.id)]
            other.append(chunk, follows=True)
        return np.arange(stored[0].start, stored[-1].end), np.arange(before, other.mirror.end)

    other.restore({part: through_a_checkpoint(state) for part, state in parts.items()}, refill)
    assert other.trim(1000) == one.trim(1000)
    assert other.log_rows == one.log_rows > 0
    if with_rows:
        for part, state in other.state(with_rows).items():
            assert_same(state, parts[part])
    for buffer in (one, other):
        for actor in actors:
            assert buffer.assembler.last_flags(actor.slot) is not None
    for chunk in [actor.chunk() for _ in range(3) for actor in actors]:
        for buffer in (one, other):
            buffer.append(chunk, follows=True)
    if with_rows:
        for ours, theirs in zip(one.sample(64).batch, other.sample(64).batch, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_buffer_with_a_dataset_beside_it() -> None:
    """Its rows are read again; the sampler's draws and priorities of them go on."""

    def make() -> MixedBuffer:
        online, dataset = (
            ReplayBuffer(
                mirror,
                NStepAssembler(mirror, 3, 0.9),
                PrioritisedSampler(mirror, np.random.default_rng(1), 0.6, 0.4, 100),
            )
            for mirror in (Mirror(SCHEMA, 60), Mirror(SCHEMA, 60))
        )
        rows = FakeActor(5, 2, p_end=0.1)
        for _ in range(4):
            dataset.append(rows.chunk(), follows=True)
        return MixedBuffer(online, dataset, 0.25, "group/walks-v0", "digest")

    one, other = make(), make()
    actor = FakeActor(0, 2, p_end=0.0)
    for _ in range(10):
        one.append(actor.chunk(), follows=True)
    one.update_priorities(one.sample(8, 1, 50).rows, np.linspace(-1, 1, 8).astype(np.float32))
    one.update_priorities(np.zeros(1, np.int64), np.ones(1, np.float32))  # evicted
    parts = one.state(with_rows=True)
    for name in ("mirror", "sampler", "dataset", "dataset-sampler"):
        assert_filled(parts[name], "has_uint32", "uinteger", "missed")
    other.restore({part: through_a_checkpoint(state) for part, state in parts.items()}, lambda _: pytest.fail("rows"))
    for part, state in other.state(with_rows=True).items():
        assert_same(state, parts[part])
    ours, theirs = one.sample(16), other.sample(16)
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    assert (ours.rows < 0).sum() == 4


def test_the_sequences_buffers() -> None:
    """Pieces of lanes that are still to be cut, recurrent states, the heap of what is evicted next: what comes after is
    the same as without the checkpoint."""

    def make() -> ReplayBuffer:
        mirror = SequenceMirror(replace(SEQUENCES, stack=2), 70, SequenceSpec(2, 4, 1, 3))
        sampler = PrioritisedSampler(mirror, np.random.default_rng(1), 0.6, 0.4, 100)
        return ReplayBuffer(mirror, SequenceAssembler(mirror, 2, 0.9), sampler)

    one, other = make(), make()
    actors = [FakeActor(slot, 2, p_end=0.1, numbers=itertools.count(1)) for slot in (0, 3)]
    for number in range(8):
        for actor in actors:
            one.append(recurrent(actor.chunk(5)), follows=number not in (0, 4))
    parts = one.state(with_rows=True)
    for name in ("mirror", "sampler"):
        assert_filled(parts[name], "has_uint32", "uinteger", "missed")
    pieces = [array for name, array in parts["assembler"].arrays.items() if ".rows." in name]
    assert len(pieces) == 4
    assert any(len(piece) for piece in pieces)
    other.restore({part: through_a_checkpoint(state) for part, state in parts.items()}, lambda _: pytest.fail("rows"))
    for part, state in other.state(with_rows=True).items():
        assert_same(state, parts[part])
    for actor in actors * 4:
        chunk = recurrent(actor.chunk(5))
        for buffer in (one, other):
            buffer.append(chunk, follows=True)
        assert one.mirror.sampleable_rows > 0
        for ours, theirs in zip(one.sample(16).batch, other.sample(16).batch, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for part, state in other.state(with_rows=True).items():
        assert_same(state, one.state(with_rows=True)[part])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("next", 70),
        ("next", -1),
        ("burn_in", 3),
        ("trained", 0),
        ("trained", 5),
        ("length", 1 << 20),
        ("steps", 5),
        ("first", 0),
        ("reward", np.inf),
        ("core_states", np.nan),
        ("core_rows", 5),
    ],
)
def test_sequences_that_cannot_be_are_refused(name: str, value: float) -> None:
    """What would be read beyond an array, by code that is compiled and does not look."""
    spec = SequenceSpec(2, 4, 1, 3)
    mirror = SequenceMirror(SEQUENCES, 70, spec)
    assembler, actor = SequenceAssembler(mirror, 2, 0.9), FakeActor(0, 2, p_end=0.1)
    for _ in range(10):
        assembler.append(recurrent(actor.chunk(5)), follows=True)
    state = through_a_checkpoint(mirror.state())
    SequenceMirror(SEQUENCES, 70, spec).restore(state)
    named = np.flatnonzero(state.arrays["sampleable"])
    spoilt_array = np.array(state.arrays[name])
    spoilt_array.reshape(-1)[-1 if name.startswith("core") else named[-1]] = value
    with pytest.raises(ValueError, match=name):
        SequenceMirror(SEQUENCES, 70, spec).restore(State(state.values, {**state.arrays, name: spoilt_array}))


@pytest.mark.parametrize(
    ("part", "position", "value"), [("rows", 0, -1), ("rows", -1, 1 << 40), ("known", -1, 1 << 40), ("piece", 0, 99)]
)
def test_a_lanes_piece_that_cannot_be_is_refused(part: str, position: int, value: int) -> None:
    mirror = SequenceMirror(SEQUENCES, 70, SequenceSpec(2, 4, 1, 3))
    assembler, actor = SequenceAssembler(mirror, 2, 0.9), FakeActor(0, 2, p_end=0.0)
    for _ in range(5):
        assembler.append(recurrent(actor.chunk(5)), follows=True)
    state = through_a_checkpoint(assembler.state())
    assembler.restore(state)
    key = f"0.{part}.1"
    spoilt_array = np.array(state.arrays[key])
    spoilt_array[position] = value
    with pytest.raises(ValueError, match="lane's piece"):
        assembler.restore(State(state.values, {**state.arrays, key: spoilt_array}))


def test_the_memory_logs() -> None:
    one, other = MemoryLog(), MemoryLog()
    one.claim("nonce")
    one.publish(3, plenty(), b"w" * 40)
    one.describe(3, b"about")
    one.append(1, ChunkId(2, 3), b"chunk")
    state = one.state()
    assert_filled(state)
    other.restore(through_a_checkpoint(state))
    assert_same(other.state(), state)


def test_the_evaluators_and_the_budgets() -> None:
    config = EvalConfig(screen_episodes=1, confirm_episodes=2)
    one, other = (build_evaluator(EnvConfig(id="CartPole-v1"), config, NetworkSpec(), seed) for seed in (1, 2))
    one._next_seed += 12345
    assert_filled(one.state())
    other.restore(through_a_checkpoint(one.state()))
    assert_same(other.state(), one.state())

    spent, restored = (Restarts("it", 5, clock=lambda: 100.0) for _ in range(2))
    spent.deaths.append(40.0)
    spent.total = 3
    spent.reasons.update(["ValueError", "ValueError", "OSError"])
    state = State(spent.state(), {})
    assert_filled(state)
    restored.restore(through_a_checkpoint(state).values)
    assert restored.state() == spent.state()
    assert restored.reasons == spent.reasons


def test_the_rollouts_its_rows_its_lanes_and_its_policys() -> None:
    """In the middle of an episode, after environments that raised, with weights and every counter."""

    def make() -> Rollout:
        log = MemoryLog()
        layers = {
            name: np.full(shape, 0.5, np.float32)
            for name, shape in {
                "encoder.layers.0.weight": (4, 3), "encoder.layers.0.bias": (4,),
                "head.linear.weight": (2, 4), "head.linear.bias": (2,),
            }.items()
        }  # fmt: skip
        log.take_lease(1)
        log.publish(1, plenty(), pack_weights(1, 2, 3, layers))
        envs = make_lanes(EnvConfig(id="raising_once/Env-v0"), 2, restarts=5, recorded=True)
        schema = Schema((3,), "float32", 2)
        return Rollout(
            ActorId("a-run", 7, 1, 3, 2), envs, schema, make_policy(NetworkSpec(), schema), log,
            ActorConfig(lanes=2, chunk_steps=9, fetch_every_s=0), lambda: 0.0,
        )  # fmt: skip

    raised: list[int] = []

    def raise_once(word: str, env: RaisingEnv) -> None:
        if word == "step" and env.at[1:] == (0, 1) and not raised:
            raised.append(1)
            raise ValueError("once")

    def make_env(**_: Any) -> Any:
        return RaisingEnv(raise_once, lengths=(20,))

    gym.register("raising_once/Env-v0", entry_point=make_env)
    try:
        one = make()
        assert one.ready()
        one.fill()
        assert one.send()
        one.counters = Counters(1, 2, 3, 4, 5.5, 6.5)
        assert one._stepper.rows._returns.any()
        state = one.state()
        other = make()
        other.restore(through_a_checkpoint(state))
        assert_same(_without_ages(other.state()), _without_ages(state))
        lane = one.lanes[0]
        assert isinstance(lane, RecordedLane)
        assert sum(each._restarts.total for each in one.lanes if isinstance(each, RecordedLane)) == 1
    finally:
        del gym.registry["raising_once/Env-v0"]


def _without_ages(state: State) -> State:
    """The ages of a lane's deaths are seconds, which go on."""
    lanes = [{**lane, "restarts": {**lane["restarts"], "ages_s": len(lane["restarts"]["ages_s"])}}
             for lane in state.values["lanes"]]  # fmt: skip
    return State({**state.values, "lanes": lanes}, state.arrays)
