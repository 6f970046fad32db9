"""Further columns of rows, one per row and one per chunk: from the codec and the log to the sampled batch, untouched by
mirror, codec and storage; and from an environment's infos to the loss."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from chunk_makers import RUN, FakeActor, append, chunk_id, reader_on
from cli_runs import qherd, summary
from hypothesis import given, settings
from hypothesis import strategies as st
from lending import plenty

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.config import ActorConfig, EnvConfig
from actors.contract import columns_of
from actors.errors import ContractError
from actors.lanes import LaneError, RecordedLane
from actors.rollout import Rollout
from deploy.config.models import RunConfig
from deploy.planning.memory import chunk_bytes, server_bytes
from learner.algorithms import Algorithm
from learner.algorithms.dqn import scalar_loss
from learner.algorithms.loss import LossOutput, Transitions
from learner.checkpoint import Checkpointer, newest
from learner.config import CheckpointConfig, LearnerConfig
from learner.learner import Learner
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig, NetworkSpec
from learner.publisher import Publisher
from learner.weights import pack
from replay import attach
from replay.chunk import MAX_EXTRAS, BadChunk, Chunk, Codec, Column, Schema, encode
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkLog
from replay.chunk_log.redis_log import RedisLog
from replay.config import ReplayConfig
from replay.description import DescriptionError, RunDescription, SlotDescription
from replay.mirror import Batch, Mirror
from replay.ring import Ring
from replay.state import State
from replay.storage import Device, Memmap, Ram, Storage

Array = npt.NDArray[Any]
MASK, CORE = Column("mask", "uint8", (4,)), Column("core", "float32", (2, 3), per="chunk")
SCHEMA = Schema((1,), "float32", 4, extras=(MASK, CORE))
PLAIN = Schema((1,), "float32", 4)
CODEC = Codec(SCHEMA, RUN)
STORAGES: dict[str, Callable[[Path], Storage]] = {
    "ram": lambda _: Ram(),
    "memmap": Memmap,
    "device": lambda _: Device(torch.device("cpu")),
}


def mask_of(names: Array) -> Array:
    """The mask of the rows with these observations: the last four bits of the number."""
    return (names.astype(np.int64)[..., None] >> np.arange(4) & 1).astype(np.uint8)


def core_of(names: Array) -> Array:
    """The core at the rows with these observations."""
    return (names.astype(np.float32)[..., None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float32)


def extended(chunk: Chunk) -> Chunk:
    """The chunk with both columns, by its observations, which are numbers."""
    names = chunk.obs[..., 0]
    return replace(chunk, extras={"mask": mask_of(names), "core": core_of(names[0])})


class Heads:
    """For each row, by its observation's number: its lane's first row in its chunk."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}

    def note(self, chunk: Chunk) -> Chunk:
        names = chunk.obs[..., 0].astype(int)
        for lane in range(chunk.lanes):
            self.of.update(dict.fromkeys(names[:, lane].tolist(), int(names[0, lane])))
        return chunk

    def check(self, batch: Batch) -> None:
        """Both columns are those of the rows of s_tm1 and of s_t."""
        for obs, extras in ((batch.s_tm1, batch.extras_tm1), (batch.s_t, batch.extras_t)):
            numbers = np.asarray(obs)[..., 0]
            names = numbers if numbers.ndim == 1 else numbers[:, -1]  # of a stack the newest
            heads = np.array([self.of[name] for name in names.astype(int).tolist()], np.int64)
            assert extras.keys() == {"mask", "core"}
            for name, expected in (("mask", mask_of(names)), ("core", core_of(heads))):
                assert np.asarray(extras[name]).dtype == expected.dtype
                np.testing.assert_array_equal(np.asarray(extras[name]), expected, name)


def all_rows(mirror: Ring) -> Array:
    alive = np.arange(mirror.start, mirror.end)
    found: Array = alive[mirror.sampleable(alive)]
    return found


# -- the schema and the codec


def test_columns_are_sent_and_come_back() -> None:
    """Both kinds, read-only, at the exact length; a chunk without them is another schema's."""
    chunk = extended(FakeActor(lanes=3).chunk(5))
    data = encode(chunk, SCHEMA, RUN)
    assert len(data) == SCHEMA.chunk_bytes(15, 3) == PLAIN.chunk_bytes(15, 3) + 15 * 4 + 3 * 24
    again = CODEC.decode(data, 0, 1, 1)
    assert again.extras.keys() == {"mask", "core"}
    for name, column in again.columns.items():
        assert (column.dtype, column.shape) == (chunk.columns[name].dtype, chunk.columns[name].shape), name
        np.testing.assert_array_equal(column, chunk.columns[name])
        assert not column.flags.writeable
    with pytest.raises(BadChunk, match="schema"):
        Codec(PLAIN, RUN).decode(data, 0, 1, 1)
    with pytest.raises(KeyError, match="mask"):
        encode(replace(chunk, extras={}), SCHEMA, RUN)


@pytest.mark.parametrize(
    "other",
    [("mask2", "uint8", (4,)), ("mask", "int8", (4,)), ("mask", "uint8", (2, 2)), ("mask", "uint8", (4,), "chunk")],
)
def test_all_of_a_column_is_in_the_schemas_digest(other: tuple[Any, ...]) -> None:
    assert replace(SCHEMA, extras=(Column(*other), CORE)).digest != SCHEMA.digest
    assert replace(SCHEMA, extras=(CORE, MASK)).digest != SCHEMA.digest


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("per", ["row", "chunk"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_a_column_is_refused(dtype: str, per: Any, bad: float) -> None:
    """Wherever float columns lie: alone, together, or after the flags."""
    column = Column("core", dtype, (2,), per)
    for extras in ((column,), (MASK, column), (column, Column("more", "float32"))):
        schema = replace(SCHEMA, extras=extras)
        chunk = FakeActor(lanes=2).chunk(3)
        arrays = {each.name: np.ones(each.grid(3, 2), each.dtype) for each in extras}
        Codec(schema, RUN).decode(encode(replace(chunk, extras=arrays), schema, RUN), 0, 1, 1)
        arrays["core"].flat[-1] = bad
        with pytest.raises(BadChunk, match="value"):
            Codec(schema, RUN).decode(encode(replace(chunk, extras=arrays), schema, RUN), 0, 1, 1)


def test_a_column_of_the_wrong_size_does_not_pass() -> None:
    """The reader finds another length than the header's."""
    chunk = extended(FakeActor(lanes=2).chunk(3))
    for name, array in (("mask", chunk.extras["mask"].astype(np.int32)), ("core", chunk.extras["core"][:1])):
        with pytest.raises(BadChunk, match="length"):
            CODEC.decode(encode(replace(chunk, extras={**chunk.extras, name: array}), SCHEMA, RUN), 0, 1, 1)


@pytest.mark.parametrize(
    ("extras", "why"),
    [
        ((Column("a b", "uint8"),), "'a b' is no column's name"),
        ((Column("a" * 65, "uint8"),), "is no column's name"),
        ((Column("obs", "uint8"),), "two columns are named 'obs'"),
        ((MASK, MASK), "two columns are named 'mask'"),
        ((Column("mask", "float64"),), "dtype 'float64' cannot be stored"),
        ((Column("mask", "uint8", (3, 0)),), r"shape \(3, 0\); no length may be below 1"),
        (tuple(Column(f"c{i}", "uint8") for i in range(MAX_EXTRAS + 1)), f"33 columns .* {MAX_EXTRAS} are the most"),
    ],
)
def test_columns_that_cannot_be_are_refused(extras: tuple[Column, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(PLAIN, extras=extras)


def test_an_older_chunk_is_refused_with_what_to_do() -> None:
    """Found, wanted and the remedy."""
    data = bytearray(encode(extended(FakeActor().chunk()), SCHEMA, RUN))
    data[4:6] = b"\x01\x00"
    with pytest.raises(BadChunk, match="version: the chunk's format is 1, this qherd reads 2: run all actors and the"):
        CODEC.decode(bytes(data), 0, 1, 1)


def about(schema: Schema = SCHEMA) -> RunDescription:
    return RunDescription(
        row_schema=schema, n_step=3, gamma=0.9, reward_scale=1.0, capacity_rows=1000, env_steps=0, updates=0, slots={}
    )


def test_the_description_names_the_columns() -> None:
    """Whoever attaches reads the same rows; columns that cannot be are refused there too."""
    assert RunDescription.unpack(about().pack()).row_schema == SCHEMA
    assert not about().same_rows(about(PLAIN))
    for wrong in (b'"float64"', b'"no dtype"'):
        with pytest.raises(DescriptionError, match="damaged"):
            RunDescription.unpack(about().pack().replace(b'"uint8"', wrong))


def test_columns_are_planned_for() -> None:
    """In a chunk, on the server and in the mirror."""
    config = RunConfig.model_validate({"actors": {"lanes": 8, "chunk_steps": 4}, "replay": {"capacity_rows": 10_000}})
    assert chunk_bytes(config, SCHEMA) - chunk_bytes(config, PLAIN) == 32 * 4 + 8 * 24
    assert server_bytes(config, SCHEMA) - server_bytes(config, PLAIN) > 1.25 * 10_000 * (4 + 24)
    mirror = Mirror(SCHEMA, 100)
    assert mirror._heads is not None
    held = [*vars(mirror).values(), *mirror._columns.values(), *vars(mirror._heads).values()]
    allocated = sum(value.nbytes for value in held if isinstance(value, np.ndarray))
    assert Mirror.planned_bytes(SCHEMA, 100) == allocated


# -- log, reader and mirror


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    n=st.integers(1, 4),
    stack=st.sampled_from([1, 3]),
    capacity=st.integers(20, 60),
    steps=st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 6), st.sampled_from(["arrives", "arrives", "lost", "restart"])),
        min_size=1,
        max_size=40,
    ),
    where=st.sampled_from([Ram(), Device(torch.device("cpu"))]),
    seed=st.integers(0, 1 << 16),
)
def test_every_row_has_its_own_columns(
    n: int, stack: int, capacity: int, steps: list[tuple[int, int, str]], where: Storage, seed: int
) -> None:
    """Whatever is lost or evicted: the rows that can be sampled are those of a mirror without columns whose head is
    alive, with the same transitions, and each has the columns that its actor gave it."""
    schema, plain = replace(SCHEMA, stack=stack), replace(PLAIN, stack=stack)
    numbers, heads = itertools.count(), Heads()
    actors = [FakeActor(slot, 2, seed, 0.2, numbers) for slot in range(2)]
    logs = [MemoryLog(), MemoryLog()]
    mirrors = [Mirror(schema, capacity, where), Mirror(plain, capacity)]
    readers = [
        reader_on(log, Codec(mirror.schema, RUN), mirror, n, 0.9) for log, mirror in zip(logs, mirrors, strict=True)
    ]
    first_row: list[int] = []  # by row: its head's
    for reader in readers:
        reader.follow(range(2))
    for slot, time_steps, fate in steps:
        if fate == "restart":
            actors[slot].restart()
        chunk = actors[slot].chunk(time_steps)
        if fate == "lost":
            continue
        heads.note(chunk)
        start = len(first_row)
        first_row += [start + lane for _ in range(time_steps) for lane in range(2)]
        append(logs[0], extended(chunk), schema=schema)
        append(logs[1], chunk, schema=plain)
        for reader in readers:
            reader.poll()
            assert not reader.ledger.totals.refused
        rows, expected = (all_rows(mirror) for mirror in mirrors)
        alive = [row for row in expected.tolist() if first_row[row] >= mirrors[0].start]
        assert rows.tolist() == alive
        assert mirrors[0].sampleable_rows == len(alive)
        batch = mirrors[0].gather(rows)
        for ours, theirs in zip(batch, mirrors[1].gather(rows), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), theirs)
        heads.check(batch)


@pytest.mark.parametrize("storage", STORAGES)
def test_columns_from_a_real_server_to_a_sample(storage: str, server_url: str, run_name: str, tmp_path: Path) -> None:
    """Through Valkey and Redis to each storage, while the ring turns over; and to whoever attaches."""
    heads, actor = Heads(), FakeActor(lanes=2, p_end=0.1)
    mirror = Mirror(SCHEMA, 101, STORAGES[storage](tmp_path))
    with contextlib.closing(RedisLog(server_url, run_name)) as log:
        reader = reader_on(log, Codec(SCHEMA, run_name), mirror, 3, 0.9)
        reader.follow([0])
        for _ in range(40):
            chunk = heads.note(extended(actor.chunk(5)))
            log.append(0, chunk_id(chunk), encode(chunk, SCHEMA, run_name))
            reader.poll()
            heads.check(reader.buffer.sample(64).batch)
        log.describe(1, about().model_copy(update={"slots": {0: SlotDescription.of(reader.ledger.slots[0])}}).pack())
        with attach(server_url, run_name, capacity_rows=101) as memory:
            assert memory.poll() > 100
            heads.check(memory.sample(64))
    assert mirror.start > 200
    kind = {"ram": np.ndarray, "memmap": np.memmap, "device": torch.Tensor}[storage]
    assert all(isinstance(mirror._columns[name], kind) for name in ("mask", "core"))


# -- the learner


class Kept:
    """A loss that keeps the batches that it was given."""

    def __init__(self, config: LearnerConfig) -> None:
        self._loss = scalar_loss(config)
        self.batches: list[Transitions] = []

    def __call__(self, online: Any, target: Any, batch: Transitions) -> LossOutput:
        self.batches.append(batch)
        return self._loss(online, target, batch)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module with the loss; the losses that were built."""
    built: list[Kept] = []

    def build(config: LearnerConfig) -> Kept:
        built.append(Kept(config))
        return built[-1]

    module: Any = ModuleType("own_losses")
    module.build = build
    module.KEPT = Algorithm("own_losses:build", head="values")
    monkeypatch.setitem(sys.modules, "own_losses", module)
    return built


def make_loop(log: ChunkLog, folder: Path, fence: int, with_rows: bool, storage: str, sampler: str) -> LearnerLoop:
    config = LearnerConfig(network=NetworkConfig(hidden=(4,)), batch=8, device="cpu", algorithm="own_losses:KEPT")
    checkpointer = Checkpointer(folder, CheckpointConfig(), with_rows)
    kind: dict[str, Any] = {"storage": storage, "memmap_dir": folder, "sampler": sampler}
    replay = ReplayConfig(capacity_rows=101, min_rows=16, samples_per_insert=2, **kind)
    return LearnerLoop(
        RUN, log, Publisher(log, fence), SCHEMA, replay, config, fence=fence, seed=0, checkpointer=checkpointer,
        found=newest(folder) if fence > 1 else None,
    )  # fmt: skip


@pytest.mark.parametrize("with_rows", [True, False], ids=["its own rows", "the log's rows"])
@pytest.mark.parametrize(("storage", "sampler"), [("ram", "prioritised"), ("memmap", "uniform"), ("device", "uniform")])
def test_columns_reach_the_loss_and_come_back_from_a_checkpoint(
    storage: str, sampler: str, with_rows: bool, kept: list[Kept], tmp_path: Path
) -> None:
    """By a checkpoint's real files with the rows, or by a refill from the log; what is learnt then is as before."""
    log, heads, actor = MemoryLog(), Heads(), FakeActor(lanes=2, p_end=0.1)
    one = make_loop(log, tmp_path, 1, with_rows, storage, sampler)
    one.expect([0], 10)
    for _ in range(30):
        append(log, heads.note(extended(actor.chunk(5))), schema=SCHEMA)
        while one.cycle():
            pass
        one.ingest.reader.trim(1 << 30)
    one.checkpoint(wait=True)
    other = make_loop(log, tmp_path, 2, with_rows, storage, sampler)
    rows = [all_rows(loop.buffer.mirror) for loop in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 50
    batches = [loop.buffer.mirror.gather(each) for loop, each in zip((one, other), rows, strict=True)]
    for batch in batches:
        heads.check(batch)
    np.testing.assert_array_equal(np.asarray(batches[0].s_tm1), np.asarray(batches[1].s_tm1))
    other.expect([0], 10)
    for _ in range(3):
        append(log, heads.note(extended(actor.chunk(5))), schema=SCHEMA)
        while other.cycle():
            pass
    assert min(len(loss.batches) for loss in kept) > 3
    for loss in kept:
        for transitions in loss.batches:
            assert all(isinstance(array, torch.Tensor) for array in transitions.extras_t.values())
            heads.check(Batch(*transitions))


# -- the actor


class MaskedEnv(gym.Env[Any, Any]):
    """Observations count all env steps of the process; the mask in its infos goes by the observation."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": [],
        "qherd_columns": {"mask": gym.spaces.Box(0, 1, (4,), np.uint8), "wind": gym.spaces.Box(-1, 1, (), np.float32)},
    }
    observation_space = gym.spaces.Box(0, 1e6, (1,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, numbers: Any = None, broken_at: int = -1, **infos: Any) -> None:
        self._numbers, self._broken_at, self._wrong = numbers, broken_at, infos

    def _shown(self) -> tuple[Array, dict[str, Any]]:
        number = float(self.np_random.integers(1 << 19) if self._numbers is None else next(self._numbers))
        infos = {"mask": mask_of(np.array(number)), "wind": number / 2.0**20, "other": "dropped"}
        return np.array([number], np.float32), infos | self._wrong

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 7
        return self._shown()

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == self._broken_at:
            raise RuntimeError("the bridge is down")
        obs, infos = self._shown()
        return obs, 1.0, self._left == 0, False, infos


gym.register("Masked-v0", entry_point=f"{__name__}:MaskedEnv")


def masked(recorded: bool = False, incarnation: int = 1, **kwargs: Any) -> tuple[Rollout, MemoryLog]:
    """A rollout of two lanes, with weights and credit."""
    log = MemoryLog()
    log.publish(1, plenty(), pack(1, 0, 0, {
        "head.linear.weight": np.zeros((4, 1), np.float32), "head.linear.bias": np.zeros(4, np.float32)
    }))  # fmt: skip
    env, config = EnvConfig(id="Masked-v0", kwargs=kwargs), ActorConfig(lanes=2, chunk_steps=4, flush_s=1_000)
    actor = ActorId(RUN, 7, 0, 1, incarnation)
    return build_actor(actor, env, config, NetworkSpec(), log, recorded=recorded), log


def check_sent(log: MemoryLog, schema: Schema) -> int:
    """All rows that came have the mask and the wind of their own observation, also those that are bootstrapped from;
    returns how many can be sampled."""
    mirror = Mirror(schema, 1000)
    reader = reader_on(log, Codec(schema, RUN), mirror, 2, 0.9)
    reader.follow([0])
    reader.poll()
    batch = mirror.gather(all_rows(mirror))
    for obs, extras in ((batch.s_tm1, batch.extras_tm1), (batch.s_t, batch.extras_t)):
        np.testing.assert_array_equal(extras["mask"], mask_of(obs[:, 0]))
        np.testing.assert_array_equal(extras["wind"], obs[:, 0] / 2**20)
    return len(batch.r_t)


@pytest.mark.parametrize("broken_at", [-1, 3], ids=["plays on", "is made anew"])
def test_an_environments_infos_become_columns(broken_at: int) -> None:
    """By the names in its metadata: across chunks, ends of episodes, the flush, and environments made anew."""
    rollout, log = masked(numbers=itertools.count(1), broken_at=broken_at)
    schema = rollout.schema
    assert schema.extras == (Column("mask", "uint8", (4,)), Column("wind", "float32", ()))
    for _ in range(3):
        assert rollout.ready()
        rollout.fill()
        rollout.send()
    assert rollout.flush(1.0)
    assert check_sent(log, schema) == rollout.counters.env_steps > 15


def test_a_lane_that_is_played_again_has_its_columns_back() -> None:
    """The first row after a resume has the columns of the observation that it resumed at."""
    one, log = masked(recorded=True)
    for _ in range(2):
        assert one.ready()
        one.fill()
        one.send()
    other, _ = masked(recorded=True)
    other._log = log
    other.restore(one.state())
    lanes = [rollout.lanes for rollout in (one, other)]
    for ours, theirs in zip(*lanes, strict=True):
        assert isinstance(ours, RecordedLane)
        assert isinstance(theirs, RecordedLane)
        for name, value in ours.extras.items():
            np.testing.assert_array_equal(theirs.extras[name], value, name)
    assert other.ready()
    other.fill()
    other.send()
    assert other.flush(1.0)
    assert check_sent(log, one.schema) > 15


@pytest.mark.parametrize(
    ("infos", "why"),
    [
        ({"mask": None}, r"info\['mask'\] = None; its metadata say uint8\[4\]"),
        ({"mask": np.zeros(3, np.uint8)}, r"info\['mask'\] = array.*say uint8\[4\]"),
        ({"mask": np.full(4, 0.5)}, r"info\['mask'\] = array.*say uint8\[4\]"),
        ({"mask": np.full(4, 300, np.uint16)}, r"info\['mask'\] = array.*say uint8\[4\]"),
        ({"mask": [[1], [1, 0]]}, r"info\['mask'\] = \[\[1\], \[1, 0\]\]; its metadata say uint8\[4\]"),
    ],
)
def test_infos_that_are_not_as_declared_are_told(infos: dict[str, Any], why: str) -> None:
    with pytest.raises(LaneError, match=why):
        masked(numbers=itertools.count(1), **infos)


def test_an_infinite_info_is_told_with_its_lane() -> None:
    rollout, _ = masked(numbers=itertools.count(1), wind=np.float32("inf"))
    assert rollout.ready()
    told = "Masked-v0 returned wind that is not finite as float32 in lane 0 after env step 0 of it"
    with pytest.raises(ValueError, match=told):
        rollout.fill()


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (["mask"], r"qherd_columns in its metadata is \['mask'\]; Boxes by name are needed"),
        (
            {"mask": gym.spaces.Discrete(2)},
            r"\['mask'\] in its metadata is Discrete\(2\); a Box of one of",
        ),
        ({"mask": gym.spaces.Box(0, 1, (4,), np.float64)}, "is Box.*float64.*; a Box of one of the dtypes"),
        ({"obs": gym.spaces.Box(0, 1, (4,), np.float32)}, "two columns are named 'obs'"),
        (
            {"action_mask": gym.spaces.Box(0, 1, (3,), np.uint8)},
            r"action_mask in its metadata has the shape \(3,\), and there are \d actions: give it \(\d,\)",
        ),
    ],
)
def test_metadata_that_cannot_be_columns_are_refused(columns: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MaskedEnv.metadata, "qherd_columns", columns)
    with pytest.raises(ContractError, match=why):
        masked(numbers=itertools.count(1))


def test_a_batch_is_mapped_with_its_columns_and_unpacked_without() -> None:
    s_tm1, a_tm1, r_t, discount_t, s_t, *extras = (np.full(2, value) for value in range(7))
    batch = Batch(s_tm1, a_tm1, r_t, discount_t, s_t, {"a": extras[0]}, {"a": extras[1]})
    doubled = batch.map(lambda array: 2 * array)
    assert [array[0] for array in doubled] == [0, 2, 4, 6, 8]
    assert (doubled.extras_tm1["a"][0], doubled.extras_t["a"][0]) == (10, 12)
    assert [array[0] for array in batch] == [0, 1, 2, 3, 4]


def test_an_update_takes_columns_of_the_host() -> None:
    """A loss that does not look at them learns as without."""
    learner = Learner(LearnerConfig(batch=2, network=NetworkConfig(hidden=(4,))), SCHEMA, torch.device("cpu"), 0)
    obs, floats = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    extras = {"mask": np.ones((2, 4), np.uint8)}
    errors = learner.update(Batch(obs, np.zeros(2, np.int64), floats, floats, obs, extras, extras))
    assert errors.shape == (2,)


OWN = """
import gymnasium as gym
import numpy as np
import torch

from learner.algorithms import Algorithm
from learner.algorithms.loss import LossOutput


class Count(gym.Env):
    metadata = {"render_modes": [], "qherd_columns": {"even": gym.spaces.Box(0, 1, (1,), np.uint8)}}
    observation_space = gym.spaces.Box(0, 1e6, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def _shown(self):
        number = int(self.np_random.integers(1 << 20))
        return np.array([number], np.float32), {"even": np.array([1 - number % 2], np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = 20
        return self._shown()

    def step(self, action):
        self._left -= 1
        obs, infos = self._shown()
        return obs, 1.0, self._left == 0, False, infos


gym.register("Count-v0", entry_point=Count)


def masked(config):
    def loss(online, target, batch):
        for obs, extras in ((batch.s_tm1, batch.extras_tm1), (batch.s_t, batch.extras_t)):
            assert torch.equal(extras["even"].float(), 1 - obs % 2), "an update with another row's column"
        q_tm1 = online(batch.s_tm1 / 1e6).q
        error = batch.r_t - q_tm1[:, 0]
        return LossOutput(error**2, error.detach(), q_tm1.detach())

    return loss


MASKED = Algorithm("own:masked", head="values")
"""


@pytest.mark.long
@pytest.mark.parametrize("mode", ["inline", "local"])
def test_a_run_has_an_environments_columns_in_its_loss(mode: str, tmp_path: Path) -> None:
    """From the first look to the update, and after a resume: the loss itself compares each with its observation."""
    (tmp_path / "own.py").write_text(OWN)
    options = ("--mode", mode, "--run", "own", "--eval.threshold", "None", "--learner.algorithm", "own:MASKED")
    done = qherd("train", "own:Count-v0", "--env.path", ".", *options, "--budget.env-steps", "3000", cwd=tmp_path)
    assert done.code == 0, done
    first = summary(tmp_path / "runs" / "own")
    assert first["updates"] > 100
    done = qherd("resume", "runs/own", "--budget.env-steps", "6000", cwd=tmp_path)
    assert done.code == 0, done
    assert summary(tmp_path / "runs" / "own")["updates"] > first["updates"]


def test_a_chunks_end_that_was_never_there_is_refused() -> None:
    """It is counted up to when the chunk's first row is evicted: one at 2^60 took all memory then."""
    mirror = Mirror(SCHEMA, 32)
    rows = {name: np.zeros((4, *each.shape[1:]), each.dtype) for name, each in mirror.state().arrays.items()}
    mirror.restore(State({"end": 4, "sampleable_rows": 0}, rows))
    rows["chunk_end"][2] = 1 << 60
    with pytest.raises(ValueError, match=r"chunk_end has values outside -1\.\.4"):
        mirror.restore(State({"end": 4, "sampleable_rows": 0}, rows))


def test_an_environment_without_metadata_declares_nothing() -> None:
    env = MaskedEnv(itertools.count(1))
    env.metadata = None  # type: ignore[assignment]
    assert columns_of(env) == ()
