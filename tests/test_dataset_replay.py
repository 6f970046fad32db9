"""``--replay.dataset``: a Minari dataset's rows beside the actors', window by window; learning from them alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import grid_env
import h5py
import minari
import numpy as np
import numpy.typing as npt
import pytest
from chunk_makers import SCHEMA, FakeActor
from dataset_makers import walks, write, write_walks
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.dataset.minari_storage import MinariStorage
from policies import a_run
from scripted_env import SpacesEnv
from test_known_answer import PRIORITISED, REPLAY, TOLERANCE, config, value_iteration

from actors.contract import Checked
from actors.envs import about_of, make_env, schema_of
from deploy.cli import main
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig, env_of
from deploy.planning.dataset import check_dataset
from deploy.run_directory.description import describe_policy
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.driver import train
from deploy.sessions.inline import InlineSession
from learner import dataset as reading
from learner import minari_hdf5
from learner.checkpoint import newest_policy
from learner.dataset import Dataset, DatasetSpec, read_dataset
from learner.minari_store import DatasetError, folder_of
from replay.assembler import NStepAssembler
from replay.buffer import ReplayBuffer
from replay.chunk import Schema
from replay.config import DatasetOption, ReplayConfig
from replay.limiter import Limiter
from replay.mirror import Batch, Mirror
from replay.mixed import MixedBuffer, OtherDataset
from replay.samplers import make_sampler
from replay.storage import Device

Array = npt.NDArray[Any]
SPEED = Box(-np.inf, np.inf, (2,), np.float64)
NESTED, FLAT = (
    (space, MultiDiscrete([2, 3], start=[4, -1])) for space in (Dict(place=Discrete(7, start=-3), speed=SPEED), SPEED)
)
pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that Minari has its datasets in."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def read(
    dataset_id: str, schema: Schema, about: Any, n: int = 1, gamma: float = 0.9, sampler: str = "uniform"
) -> Dataset:
    def make(rows: int) -> ReplayBuffer:
        mirror = Mirror(schema, rows)
        options = ReplayConfig.model_validate({"sampler": sampler})
        return ReplayBuffer(
            mirror, NStepAssembler(mirror, n, gamma), make_sampler(options, mirror, np.random.default_rng(0))
        )

    return read_dataset(DatasetSpec(dataset_id, folder_of(dataset_id), about), schema, make)


def transitions(buffer: ReplayBuffer) -> Batch:
    """All that can be sampled, in the rows' order."""
    rows = np.arange(buffer.mirror.start, buffer.mirror.end)
    found: Batch = buffer.mirror.gather(rows[buffer.mirror.sampleable(rows)])
    return found


# -- exact to the window


@st.composite
def episodes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Episodes of NESTED of 1 to 9 env steps, with all kinds of ends; a reward may be 0."""
    found = []
    for steps in draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)):
        rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
        ends = np.zeros((2, steps), np.bool_)
        ends[:, -1] = draw(st.sampled_from([(True, False), (False, True), (True, True), (False, False)]))
        found.append(
            {
                "observations": {
                    "place": rng.integers(-3, 4, steps + 1),
                    "speed": rng.normal(size=(steps + 1, 2)),
                },
                "actions": rng.integers((4, -1), (6, 2), (steps, 2)),
                "rewards": rng.integers(-2, 3, steps) * 0.5,
                "terminations": ends[0],
                "truncations": ends[1],
                "infos": {},
            }
        )
    return found


def naive(each: dict[str, Any], n: int, gamma: float) -> list[tuple[list[float], int, float, float, list[float]]]:
    """The n-step transitions of an episode, by the definition: one row after another, float by float."""
    steps = len(each["rewards"])

    def seen(t: int) -> list[float]:
        if not isinstance(each["observations"], dict):
            return [float(np.float32(x)) for x in each["observations"][t]]
        hot = [0.0] * 7
        hot[int(each["observations"]["place"][t]) + 3] = 1.0
        return [*hot, *(float(np.float32(x)) for x in each["observations"]["speed"][t])]

    found = []
    for t in range(steps):
        end = min(t + n, steps)
        r_t = sum(gamma**k * float(each["rewards"][t + k]) for k in range(end - t))
        discount = 0.0 if end == steps and each["terminations"][-1] else gamma ** (end - t)
        first, second = (int(x) for x in each["actions"][t])
        found.append((seen(t), (first - 4) * 3 + second + 1, r_t, discount, seen(end)))
    return found


@settings(max_examples=40, deadline=None)
@given(episodes(), st.booleans(), st.integers(1, 5), st.sampled_from([1.0, 0.9]), st.integers(2, 12))
def test_its_transitions_are_a_naive_readers(
    written: list[dict[str, Any]], flat: bool, n: int, gamma: float, chunk_rows: int
) -> None:
    """Of any episodes, across chunks of any size: observations, actions, returns, discounts, bootstraps. Nested
    observations are read by Minari, flat ones below it."""
    spaces = FLAT if flat else NESTED
    if flat:
        written = [{**each, "observations": each["observations"]["speed"]} for each in written]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        patch.setattr(reading, "CHUNK_ROWS", chunk_rows)
        write("group/any-v0", *spaces, written)
        assert minari_hdf5.reads(minari.load_dataset("group/any-v0")) == flat
        env = Checked(SpacesEnv(*spaces))
        found = read("group/any-v0", schema_of(env), env.about, n, gamma)
    wanted = [transition for each in written for transition in naive(each, n, gamma)]
    s_tm1, a_tm1, r_t, discount_t, s_t = transitions(found.buffer)
    assert (found.episodes, found.env_steps) == (len(written), len(wanted))
    np.testing.assert_array_equal(s_tm1, [each[0] for each in wanted])
    np.testing.assert_array_equal(a_tm1, [each[1] for each in wanted])
    np.testing.assert_allclose(r_t, [each[2] for each in wanted], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(discount_t, [each[3] for each in wanted], rtol=1e-6)
    np.testing.assert_array_equal(s_t, [each[4] for each in wanted])


@pytest.mark.parametrize(
    ("env_id", "stack"),
    [("signal_env:Signal-v0", 3), ("masked_env:MaskedGrid-v0", 1), ("arm_env:Arm-v0", 1)],
)
def test_what_a_run_has_written_comes_back_as_its_actors_store_it(tmp_path: Path, env_id: str, stack: int) -> None:
    """Stacks, masks and numbers of actions: the environment is played again, as an actor plays it."""
    run = a_run(tmp_path, env_id, env={"frame_stack": stack}, network={"hidden": (8,)})
    with pytest.raises(SystemExit):
        main(["dataset", str(run), "--out", "group/own-v0", "--episodes", "4", "--epsilon", "0.5"])
    env = make_env(env_of(RunDirectory.open(run).config), training=False)
    found = minari.load_dataset("group/own-v0")
    batch = transitions(read("group/own-v0", schema_of(env), about_of(env)).buffer)
    row = 0
    for index, episode in enumerate(found):
        (metadata,) = found.storage.get_episode_metadata([index])
        obs, infos = env.reset(seed=metadata["seed"])
        for t in range(len(episode)):
            np.testing.assert_array_equal(batch.s_tm1[row], obs)
            for name, column in batch.extras_tm1.items():
                np.testing.assert_array_equal(column[row], infos[name])
            obs, reward, terminated, truncated, infos = env.step(batch.a_tm1[row])
            assert (terminated or truncated) == (t == len(episode) - 1)
            np.testing.assert_array_equal(batch.s_t[row], obs)
            assert batch.r_t[row] == np.float32(reward)
            assert (batch.discount_t[row] == 0) == terminated
            row += 1
    assert row == len(batch.r_t) > 10


READ = [
    Discrete(5, start=-2),
    MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [0, -7]])),
    MultiBinary((2, 3)),
    Box(0, 1, (3,), np.bool_),  # type: ignore[arg-type]
    Box(0, 255, (40, 36, 3), np.uint8),
    Box(-np.inf, np.inf, (), np.float64),
]


@pytest.mark.parametrize("space", READ, ids=lambda space: " ".join(str(space).split())[:40])
def test_what_is_read_below_minaris_layer_is_what_minari_reads(space: Any) -> None:
    """Also where columns of one dataset have several types, and infos of these names or others."""
    space.seed(3)
    rng, written = np.random.default_rng(0), []
    for steps, reward in ((4, ">f4"), (1, "<f8"), (3, "<f2")):
        infos = {"odd": rng.normal(size=(steps + 1, 2)), "nested": {"odd": np.ones(steps + 1)}} if steps != 1 else {}
        written.append(
            {
                "observations": np.stack([space.sample() for _ in range(steps + 1)]),
                "actions": rng.integers(0, 3, steps).astype(np.int16 if steps == 3 else np.int64),
                "rewards": rng.normal(size=steps).astype(reward),
                "terminations": np.zeros(steps, np.bool_),
                "truncations": np.ones(steps, np.int8 if steps == 3 else np.bool_),
                "infos": infos,
            }
        )
    write("group/any-v0", space, Discrete(3), written)
    found = minari.load_dataset("group/any-v0")
    assert minari_hdf5.reads(found)
    some = found.filter_episodes(lambda episode: len(episode) != 1)
    for dataset, count in ((found, 3), (some, 2)):
        pairs = list(zip(minari_hdf5.read_episodes(dataset, ["odd", "none"]), dataset, strict=True))
        assert len(pairs) == count
        for ours, theirs in pairs:
            assert ours.infos.keys() == {"odd"} & theirs.infos.keys()
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                assert_same(getattr(ours, name), getattr(theirs, name))
            for name, column in ours.infos.items():
                assert_same(column, theirs.infos[name])


def assert_same(one: Array, other: Any) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("observation", "action", "how", "flat"),
    [
        pytest.param(SPEED, Discrete(3), {}, True, id="numbers"),
        pytest.param(SPEED, Discrete(3), {"data_format": "arrow"}, False, id="Arrow"),
        pytest.param(SPEED, Discrete(3), {"data_format": "parquet"}, False, id="Parquet"),
        pytest.param(*NESTED, {}, False, id="dict"),
        pytest.param(Tuple([SPEED, SPEED]), Discrete(3), {}, False, id="tuple"),
        pytest.param(SPEED, Dict(a=Discrete(3)), {}, False, id="actions in a dict"),
        pytest.param(Box(0, 255, (40, 36, 3), np.uint8), Discrete(3), {"jpeg_encoding": True}, False, id="JPEG"),
        pytest.param(Box(0, 255, (40, 36, 3), np.uint8), Discrete(3), {}, True, id="pictures without loss"),
    ],
)
def test_what_else_minari_stores_is_left_to_its_reader(
    tmp_path: Path, observation: Any, action: Any, how: dict[str, Any], flat: bool
) -> None:
    storage = MinariStorage.new(tmp_path / "data", observation, action, **{"jpeg_encoding": False, **how})
    storage.update_metadata({"dataset_id": "group/any-v0", "minari_version": minari.__version__})
    assert minari_hdf5.reads(minari.MinariDataset(storage)) == flat


def test_minaris_other_format_is_read(tmp_path: Path) -> None:
    write_walks("group/hdf5-v0", 5)
    write_walks("group/arrow-v0", 5, data_format="arrow")
    env = make_env(env_of(config(tmp_path)), training=False)
    one, other = (read(f"group/{name}-v0", schema_of(env), about_of(env)) for name in ("hdf5", "arrow"))
    assert one.digest == other.digest
    assert one.env_steps == other.env_steps > 20


def test_the_first_priority_of_its_rows_is_the_greatest_there_is(tmp_path: Path) -> None:
    """Nobody's TD errors are known of them, and by their rewards alone some would never be sampled."""
    write_walks("group/walks-v0", 5)
    env = make_env(env_of(config(tmp_path)), training=False)
    sampler: Any = read("group/walks-v0", schema_of(env), about_of(env), sampler="prioritised").buffer.sampler
    assert set(np.unique(sampler._tree.weights)) == {0.0, 1.0}


# -- mixing


def mixed(
    share: float | None, capacity: int = 200, rows: int = 100, sampler: str = "uniform", storage: Any = None
) -> tuple[MixedBuffer, FakeActor]:
    """Of the actors none yet; of the dataset about ``rows`` rows, whose observations are below 0."""
    parts = []
    for number, size in enumerate((capacity, rows)):
        mirror = Mirror(SCHEMA, size, storage)
        options = ReplayConfig.model_validate({"sampler": sampler})
        parts.append(
            ReplayBuffer(
                mirror, NStepAssembler(mirror, 1, 0.9), make_sampler(options, mirror, np.random.default_rng(number))
            )
        )
    online, dataset = parts
    given_actor = FakeActor(1, numbers=itertools.count(-1_000_000))
    dataset.append(given_actor.chunk(rows), follows=True)
    return MixedBuffer(online, dataset, share, "group/any-v0", "abc"), FakeActor(0)


@pytest.mark.parametrize(
    ("share", "batch", "part"), [(0.25, 32, 8), (0.3, 32, 10), (0.5, 5, 3), (1.0, 7, 7), (0.02, 32, 1)]
)
@pytest.mark.parametrize("storage", [None, "device"])
def test_a_share_is_exact_in_each_batch(share: float, batch: int, part: int, storage: str | None) -> None:
    """And each row's transition stands where its number does."""
    import torch

    buffer, actor = mixed(share, storage=None if storage is None else Device(torch.device("cpu")))
    assert buffer.sampleable == (share == 1)
    buffer.append(actor.chunk(50), follows=True)
    sample = buffer.sample(batch, batches=6)
    rows = sample.rows.reshape(6, batch)
    assert (rows < 0).sum(1).tolist() == [part] * 6
    obs = np.asarray(sample.batch.s_tm1)[:, 0]
    np.testing.assert_array_equal(obs < 0, sample.rows < 0)
    for index, row in enumerate(sample.rows):
        own = buffer.dataset.mirror if row < 0 else buffer.mirror
        (alone,) = np.asarray(own.gather(np.array([-1 - row if row < 0 else row])).s_tm1)
        assert alone[0] == obs[index]


def test_without_a_share_it_fills_what_the_actors_rows_leave() -> None:
    """All of a batch at first, then in proportion, and nothing once the ring is full."""
    buffer, actor = mixed(None, capacity=200, rows=100)
    total = buffer.dataset.mirror.sampleable_rows
    assert buffer.dataset_part(32) == 32
    parts = []
    while buffer.mirror.rows < 200:
        buffer.append(actor.chunk(20), follows=True)
        filling = min(total, 200 - buffer.mirror.rows)
        wanted = int(filling / (filling + buffer.mirror.sampleable_rows) * 32 + 0.5)
        assert buffer.dataset_part(32) == wanted
        assert (buffer.sample(32).rows < 0).sum() == wanted
        parts.append(wanted)
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] == 0
    assert len(set(parts)) > 5


def test_priorities_go_back_to_their_own() -> None:
    buffer, actor = mixed(0.5, sampler="prioritised")
    buffer.append(actor.chunk(50), follows=True)
    samplers: Any = buffer.sampler, buffer.dataset.sampler
    sample = buffer.sample(16, batches=2)
    assert sample.weights is not None
    weights, theirs = sample.weights.reshape(2, 16), sample.rows.reshape(2, 16) < 0
    for batch in range(2):  # each part's greatest weight is 1
        assert weights[batch][theirs[batch]].max() == weights[batch][~theirs[batch]].max() == 1
    before = [sampler._tree.weights.copy() for sampler in samplers]
    buffer.update_priorities(sample.rows, np.full(32, 9.0, np.float32))
    changed = [set(np.flatnonzero(now._tree.weights != was)) for now, was in zip(samplers, before, strict=True)]
    assert changed == [set(sample.rows[sample.rows >= 0]), set(-1 - sample.rows[sample.rows < 0])]


def test_a_state_restores_the_samplers_and_refuses_another_dataset() -> None:
    buffer, actor = mixed(0.5, sampler="prioritised")
    buffer.append(actor.chunk(50), follows=True)
    sample = buffer.sample(16)
    buffer.update_priorities(sample.rows, np.arange(16, dtype=np.float32))
    parts = buffer.state(with_rows=True)
    other, _ = mixed(0.5, sampler="prioritised")
    other.restore(parts, lambda _: pytest.fail("it has its rows"))
    for _ in range(3):
        np.testing.assert_array_equal(buffer.sample(16).rows, other.sample(16).rows)
    changed = MixedBuffer(mixed(0.5)[0], other.dataset, 0.5, "group/any-v0", "xyz")
    with pytest.raises(OtherDataset, match=r"dataset group/any-v0 has changed since .* xyz, it was abc"):
        changed.restore(parts, lambda _: pytest.fail("it is refused"))


def test_rows_that_fill_count_as_a_backlog() -> None:
    """They earn samples_per_insert each, less what a backlog in the ring would have missed; actors wait meanwhile."""
    limiter = Limiter(samples_per_insert=8, min_rows=50, capacity_rows=1000, batch=10)
    limiter.fit(actors=1, chunk_rows=10)
    limiter.fill(250)
    assert limiter.room_rows == 0
    assert limiter.allowed_batches(10**6) * 10 == pytest.approx(8 * 200 + limiter.half_band, abs=10)
    limiter.samples += 8 * 200
    assert limiter.room_rows > 0


# -- whole runs


def offline(tmp_path: Path, **changes: Any) -> RunConfig:
    given: dict[str, Any] = {"actors__count": 0, "budget": {"updates": 1500}, "run": "offline"}
    return config(tmp_path, **given | {"replay__dataset": "group/walks-v0"} | changes)


def final_table(run: RunConfig) -> Array:
    arrays, _ = newest_policy(run.runs_dir / str(run.run) / "checkpoints")
    table: Array = arrays["head.linear.weight"].T + arrays["head.linear.bias"]
    return table[: grid_env.GOAL]


@pytest.mark.parametrize("replay", [REPLAY, pytest.param(PRIORITISED, marks=pytest.mark.long)])
def test_a_run_from_a_dataset_alone_reaches_value_iteration(
    tmp_path: Path, replay: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """No env step, and it is evaluated, summarised and resumed like others."""
    write_walks("group/walks-v0", 200)
    run = offline(tmp_path, replay=replay | {"dataset": "group/walks-v0"})
    assert train(run) == 0
    np.testing.assert_allclose(final_table(run), value_iteration(), rtol=0, atol=TOLERANCE)
    summary = json.loads((tmp_path / "runs" / "offline" / "summary.json").read_text())
    assert summary["exit_reason"] == "budget of updates"
    assert (summary["env_steps"], summary["updates"] >= 1500) == (0, True)
    rows = [json.loads(line) for line in (tmp_path / "runs" / "offline" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) > 5
    assert (rows[-1]["sample_age_rows"], rows[-1]["env_steps"]) == (0, 0)
    assert "env steps, fills the replay memory" in capsys.readouterr().out


def session_of(run: RunConfig, directory: RunDirectory) -> InlineSession:
    env = make_env(env_of(run), training=False)
    describe_policy(run, directory, schema_of(env), about_of(env))
    return InlineSession(run, directory, schema_of(env), print)


@pytest.mark.parametrize("dataset", ["group/walks-v0,0.25", pytest.param("group/walks-v0", marks=pytest.mark.long)])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path, dataset: str) -> None:
    write_walks("group/walks-v0", 30)
    found = []
    for name, stops in (("whole", False), ("stopped", True)):
        run = config(tmp_path, run=name, replay=PRIORITISED | {"dataset": dataset})
        session = session_of(run, directory := RunDirectory.create(run))
        for _ in range(2):
            session.advance()
        if stops:
            session.stop(1.0)
            session = session_of(run, directory)
        session.advance()
        assert session.loop.ledger.totals.env_steps > 0
        found.append((session.loop.learner.updates, session.loop.state()["learner"].arrays["online"].tobytes()))
        session.stop(1.0)
        directory.close()
    assert found[0] == found[1]


def test_a_changed_dataset_is_refused_at_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_walks("group/walks-v0", 30)
    assert train(offline(tmp_path, budget={"updates": 200})) == 0
    (folder / "data").rename(tmp_path / "was")
    write_walks_again(folder)
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(tmp_path / "runs" / "offline"), "--budget.updates", "400"])
    assert ended.value.code == 2
    assert "dataset group/walks-v0 has changed since this run began" in capsys.readouterr().err


def write_walks_again(folder: Path) -> None:
    folder.rmdir()
    write_walks("group/walks-v0", 30, seed=1)


def test_the_actors_rows_displace_a_dataset_that_fills(tmp_path: Path) -> None:
    """It trains on the dataset before any env step, then actors get credit, and the rest is theirs."""
    write_walks("group/walks-v0", 60)
    run = config(tmp_path, replay__dataset="group/walks-v0", replay__samples_per_insert=8)
    session = session_of(run, directory := RunDirectory.create(run))
    while session.loop.cycle():
        assert session.loop.ledger.totals.env_steps == 0
    assert session.loop.learner.updates > 40
    buffer: Any = session.loop.buffer
    assert buffer.dataset_part(128) == 128
    while buffer.mirror.rows < 4000:
        session.advance()
    assert buffer.dataset_part(128) == 0
    session.stop(1.0)
    directory.close()


# -- what is refused


@pytest.mark.parametrize("text", ["", ",0.5", "a-v0,", "a-v0,0", "a-v0,1.5", "a-v0,x", "a-v0,nan"])
def test_what_is_no_id_and_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give ID, or ID,SHARE"):
        DatasetOption.parse(text)
    assert DatasetOption.parse("g/a-v0") == ("g/a-v0", None)
    assert DatasetOption.parse("g/a-v0,0.5") == ("g/a-v0", 0.5)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


GRID = ("grid_env:Grid-v0", "--env.path", str(Path(grid_env.__file__).parent), "--mode", "inline")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        pytest.param(
            ["CartPole-v1", "--mode", "inline", "--replay.dataset", "group/walks-v0"],
            [
                "group/walks-v0 is of another environment: unnamed, observations Discrete(9), actions Discrete(4)",
                "this run's is CartPole-v1, observations Box([",
            ],
            id="another environment",
        ),
        pytest.param(
            [*GRID, "--replay.dataset", "group/none-v0"],
            ["there is no dataset group/none-v0 in", "minari download group/none-v0"],
            id="missing",
        ),
        pytest.param([*GRID, "--replay.dataset", "none"], ["'none' is no id of a dataset"], id="no id"),
        pytest.param(
            [*GRID, "--replay.dataset", "group/walks-v0,0.001"],
            ["0.001 of learner.batch = ", "is less than half a transition"],
            id="a share of nothing",
        ),
        pytest.param([*GRID, "--actors.count", "0"], ["actors.count is 0: give at least 1"], id="no actors"),
        pytest.param(
            ["CartPole-v1", "--actors.count", "0", "--replay.dataset", "group/walks-v0"],
            ["the mode local needs an actor at least: give --mode inline"],
            id="no actors, local",
        ),
        pytest.param(
            [*GRID, "--actors.count", "0", "--replay.dataset", "group/walks-v0,0.5"],
            ["leaves a part of each batch to the actors: give --replay.dataset group/walks-v0"],
            id="no actors, a share",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(
    arguments: list[str], shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_walks("group/walks-v0", 3)
    err = refusal(["train", *arguments], capsys)
    assert err.startswith("qherd: ")
    for text in shown:
        assert text in err
    assert not (tmp_path / "runs").exists()
    assert refusal(["plan", *arguments], capsys) == err


@pytest.mark.parametrize("name", ["total_steps", "total_episodes"])
@pytest.mark.parametrize("value", ["x", np.inf, -np.inf, np.nan, None, [3], {}, -1, True, 2.5, 10**30, 0])
def test_metadata_that_count_nothing_are_one_line(
    name: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_walks("group/bad-v0", 3) / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    arguments = [*GRID, "--actors.count", "0", "--replay.dataset", "group/bad-v0"]
    for command in ("train", "plan"):
        err = refusal([command, *arguments], capsys)
        assert err.startswith("qherd: ")
        assert err.count("\n") == 1
        if value == -1:
            assert f"says {name} -1 in its metadata.json; a whole number of 0 or more is needed" in err


@pytest.mark.parametrize("name", ["total_steps", "total_episodes"])
def test_metadata_without_a_count_are_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_walks("group/bad-v0", 3) / "data" / "metadata.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key != name}
    file.write_text(json.dumps(kept))
    err = refusal(["train", *GRID, "--actors.count", "0", "--replay.dataset", "group/bad-v0"], capsys)
    assert (err.startswith("qherd: "), err.count("\n"), name in err) == (True, 1, True)


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_walks("group/walks-v0", 3)
    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.chdir(tmp_path)
    assert "need the package minari: pip install 'qherd[minari]'" in refusal(
        ["train", *GRID, "--replay.dataset", "group/walks-v0"], capsys
    )


def test_a_dataset_of_the_same_spaces_and_another_name_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path, "CartPole-v1", network={"hidden": (8,)})
    with pytest.raises(SystemExit):
        main(["dataset", str(run), "--out", "group/pole-v0", "--episodes", "1"])
    other = config(tmp_path, env={"id": "CartPole-v0"}, replay__dataset="group/pole-v0")
    env = make_env(env_of(RunDirectory.open(run).config), training=False)
    with pytest.raises(ConfigError, match=r"is of another environment: CartPole-v1, .* this run's is CartPole-v0"):
        check_dataset(other, schema_of(env), about_of(env))


def masked_config(tmp_path: Path, **values: Any) -> RunConfig:
    """Of a run on the grid with masks, which it obeys."""
    path = Path(grid_env.__file__).parent
    return config(tmp_path, env={"id": "masked_env:MaskedGrid-v0", "path": path, "action_mask": "obey"}, **values)


def test_a_dataset_without_the_masks_that_hold_is_refused(tmp_path: Path) -> None:
    write_walks("group/walks-v0", 3)
    masked = masked_config(tmp_path, replay__dataset="group/walks-v0")
    env = make_env(env_of(masked), training=False)
    with pytest.raises(ConfigError, match=r"has no action_mask in its infos.*give --env.action-mask ignore"):
        check_dataset(masked, schema_of(env), about_of(env))


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (np.full((6, grid_env.ACTIONS), 256), r"infos\['action_mask'\] <int64>\[6, 4\]"),
        (np.full((6, grid_env.ACTIONS), 2, np.int8), r"infos\['action_mask'\] <int8>\[6, 4\]"),
        (np.full((6, grid_env.ACTIONS), np.nan), r"infos\['action_mask'\] <float64>\[6, 4\]"),
        (np.ones((5, grid_env.ACTIONS), np.int8), r"infos\['action_mask'\] <int8>\[5, 4\]"),
    ],
    ids=["wraps", "2", "NaN", "a row less"],
)
def test_masks_that_no_environment_returns_are_named(tmp_path: Path, mask: Any, why: str) -> None:
    (episode,) = walks(1, longest=5, seed=4)
    assert len(episode["rewards"]) == 5
    masked = masked_config(tmp_path)
    env = make_env(env_of(masked), training=False)
    write("group/bad-v0", Discrete(9), Discrete(4), [{**episode, "infos": {"action_mask": mask}}])
    with pytest.raises(DatasetError, match=why):
        read("group/bad-v0", schema_of(env), about_of(env))


def _spoilt(how: str) -> dict[str, Any]:
    (episode,) = walks(1, longest=5, seed=4)
    if how == "an end in the middle":
        episode["terminations"][1] = True
    elif how == "an observation less":
        episode["observations"] = episode["observations"][:-1]
    elif how == "an action that there is not":
        episode["actions"][0] = 4
    elif how == "actions that are no numbers":
        episode["actions"] = episode["actions"] + 0.5
    elif how == "a state that there is not":
        episode["observations"][0] = 9
    elif how == "a reward that is no number":
        episode["rewards"][0] = np.nan
    elif how == "rewards of two numbers":
        episode["rewards"] = np.stack([episode["rewards"]] * 2, 1)
    elif how == "one action for all steps":
        episode["actions"] = np.int64(1)
    elif how == "one flag for all steps":
        episode["terminations"] = np.bool_(False)
    return episode


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("an end in the middle", "episode 1 has an end before its last step"),
        (
            "an observation less",
            r"episode 1 has an observation of shape .*; 6 rows are needed, one more than its 5 env",
        ),
        ("an action that there is not", "episode 1 has an action outside its space Discrete"),
        ("actions that are no numbers", "episode 1 has actions <float64>"),
        ("a state that there is not", "episode 1 has the observation"),
        ("rewards of two numbers", r"episode 1 has rewards <float64>\[5, 2\]; a number for each env step is needed"),
        (
            "one action for all steps",
            r"episode 1 has actions <int64>\[\]; its space is .* one for each of its 5 env st",
        ),
        ("one flag for all steps", r"episode 1 has terminations \[\] and truncations \[5\]; \[5\] is needed"),
        ("a reward that is no number", "around episode 2: value: a reward, Q value, observation"),
    ],
)
def test_episodes_that_no_environment_returns_are_named(tmp_path: Path, how: str, why: str) -> None:
    write("group/bad-v0", Discrete(9), Discrete(4), [*walks(1), _spoilt(how)])
    env = make_env(env_of(config(tmp_path)), training=False)
    with pytest.raises(DatasetError, match=why):
        read("group/bad-v0", schema_of(env), about_of(env))


def _vast(episode: h5py.Group) -> None:
    del episode["rewards"]
    episode.create_dataset("rewards", shape=(1 << 45,), dtype=np.float64, chunks=(1024,))


def _a_group(episode: h5py.Group) -> None:
    del episode["observations"]
    episode.create_group("observations")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda episode: episode.__delitem__("actions"), id="a column less"),
        pytest.param(lambda episode: episode.parent.__delitem__("episode_1"), id="an episode less"),
        pytest.param(_a_group, id="a group for an array"),
        pytest.param(_vast, id="an array beyond memory"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    with h5py.File(write_walks("group/bad-v0", 3) / "data" / "main_data.hdf5", "a") as file:
        damage(file["episode_1"])
    env = make_env(env_of(config(tmp_path)), training=False)
    with pytest.raises(DatasetError, match="dataset group/bad-v0 cannot be read beyond episode 1: "):
        read("group/bad-v0", schema_of(env), about_of(env))


def _foreign(how: str, episode: h5py.Group, name: str, folder: Path) -> None:
    """Puts a column's data into another file, and what leads there in its place."""
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["column"] = episode[name][()]
        shape, dtype = other["column"].shape, other["column"].dtype
    (folder / "raw").write_bytes(episode[name][()].tobytes())
    parent, last = episode[name].parent, name.rpartition("/")[2]
    del episode[name]
    if how == "external link":
        parent[last] = h5py.ExternalLink(str(folder / "other.hdf5"), "column")
    elif how == "soft link":
        episode.parent["elsewhere"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/")
        parent[last] = h5py.SoftLink("/elsewhere/column")
    elif how == "external storage":
        parent.create_dataset(last, shape, dtype, external=[(str(folder / "raw"), 0, h5py.h5f.UNLIMITED)])
    else:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "column", shape)
        parent.create_virtual_dataset(last, layout)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("how", ["external link", "soft link", "external storage", "virtual dataset"])
def test_data_in_other_files_are_refused(tmp_path: Path, how: str, nested: bool) -> None:
    """Of episodes that qherd reads itself, and of those that Minari reads."""
    observation = Dict(state=Discrete(9)) if nested else Discrete(9)
    written = [
        {**each, "observations": {"state": each["observations"]} if nested else each["observations"]}
        for each in walks(3)
    ]
    env = Checked(SpacesEnv(observation, Discrete(4)))
    for number, name in enumerate(("observations/state" if nested else "observations", "rewards")):
        folder = write(f"group/foreign{number}-v0", observation, Discrete(4), written)
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            _foreign(how, file["episode_1"], name, tmp_path)
        where = "elsewhere" if nested and how == "soft link" else f"episode_1/{name}"
        kind = f"{where} (is an? (external|soft) link|has its data in another file)"
        with pytest.raises(DatasetError, match=kind):
            read(f"group/foreign{number}-v0", schema_of(env), env.about)


@pytest.mark.parametrize("how", ["an episode", "infos", "a mask"])
def test_links_to_episodes_and_infos_are_refused(tmp_path: Path, how: str) -> None:
    """Before anything starts where it is the first episode's infos."""
    masked = [{**each, "infos": {"action_mask": np.ones((len(each["actions"]) + 1, 4), np.int8)}} for each in walks(3)]
    file, name = write("group/bad-v0", Discrete(9), Discrete(4), masked) / "data" / "main_data.hdf5", "episode_0"
    name += {"an episode": "", "infos": "/infos", "a mask": "/infos/action_mask"}[how]
    with h5py.File(file, "a") as opened, h5py.File(tmp_path / "other.hdf5", "w") as other:
        opened.copy(name, other, "node")
        del opened[name]
        opened[name] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "node")
    run = masked_config(tmp_path, replay__dataset="group/bad-v0")
    env = make_env(env_of(run), training=False)
    with pytest.raises(DatasetError, match=f"{name} is an external link"):
        check_dataset(run, schema_of(env), about_of(env))


def test_one_reward_for_all_steps_is_named(tmp_path: Path) -> None:
    with h5py.File(write_walks("group/bad-v0", 3) / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = 1.0
    env = make_env(env_of(config(tmp_path)), training=False)
    why = r"dataset group/bad-v0, episode 1 has rewards <float64>\[\]; a number for each env step is needed"
    with pytest.raises(DatasetError, match=why):
        read("group/bad-v0", schema_of(env), about_of(env))


@pytest.mark.parametrize("column", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_columns_with_nothing_in_them_are_named(tmp_path: Path, column: str) -> None:
    with h5py.File(write_walks("group/bad-v0", 3) / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"][column]
        file["episode_1"][column] = h5py.Empty("f4")
    env = make_env(env_of(config(tmp_path)), training=False)
    with pytest.raises(DatasetError, match=f"episode_1/{column} has no rows and no shape"):
        read("group/bad-v0", schema_of(env), about_of(env))


@pytest.mark.parametrize("column", ["rewards", "terminations", "truncations"])
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(h5py.string_dtype(), id="texts"),
        pytest.param(h5py.vlen_dtype(np.int32), id="arrays of any length"),
        pytest.param(h5py.ref_dtype, id="references"),
        pytest.param([("a", "i4"), ("b", "f8")], id="records"),
        pytest.param("c16", id="complex numbers"),
    ],
)
def test_rewards_and_flags_that_are_none_are_named(tmp_path: Path, column: str, dtype: Any) -> None:
    with h5py.File(write_walks("group/bad-v0", 3) / "data" / "main_data.hdf5", "a") as file:
        episode = file["episode_1"]
        shape = episode[column].shape
        del episode[column]
        episode.create_dataset(column, shape, dtype)
    env = make_env(env_of(config(tmp_path)), training=False)
    with pytest.raises(DatasetError, match=r"dataset group/bad-v0, episode 1 has (rewards|flags) <"):
        read("group/bad-v0", schema_of(env), about_of(env))


def test_flags_are_true_or_false(tmp_path: Path) -> None:
    """Numbers of 0 and 1 are, others are not: 2 would be an end."""
    for number, why in ((1, None), (2, "episode 1 has flags <uint8> of its end that are not true or false")):
        with h5py.File(write_walks(f"group/flags{number}-v0", 3) / "data" / "main_data.hdf5", "a") as file:
            flags = file["episode_1/terminations"][:]
            flags[-1] = True
            del file["episode_1/terminations"]
            file["episode_1/terminations"] = flags.astype(np.uint8) * number
        env = make_env(env_of(config(tmp_path)), training=False)
        with contextlib.nullcontext() if why is None else pytest.raises(DatasetError, match=why):
            read(f"group/flags{number}-v0", schema_of(env), about_of(env))


def test_plan_has_no_actors_in_a_run_from_a_dataset_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_walks("group/walks-v0", 3)
    command = [
        "plan",
        *GRID,
        "--actors.count",
        "0",
        "--replay.dataset",
        "group/walks-v0",
        "--updates-per-second",
        "500",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["env_steps_per_s"], shown["expected_updates_per_s"], shown["bound_by"]) == (0, 500, "learner")
    with pytest.raises(SystemExit):
        main(command)
    assert "from the dataset alone" in capsys.readouterr().out
